"""The command line as a stranger meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from abl_hub import __version__
from abl_hub.cli.convert import convert
from abl_hub.cli.group import _COMMANDS, abl_hub
from tests.chat_models import save_chat_model, save_prompts


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(abl_hub, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: abl-hub" in result.output


def test_help_has_headings_and_sane_bounds() -> None:
    text = CliRunner().invoke(abl_hub, ["convert", "--help"], terminal_width=100).output
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == [
        "Options:",
        "Publishing:",
        "On Hugging Face Jobs:",
        "Model and prompts:",
        "Direction:",
        "Edit:",
        "Measuring:",
        "Machine and Hub:",
    ]
    for option in convert.params:
        if isinstance(option, click.Option):
            assert max(option.opts, key=len) in text
    assert "None" not in text
    assert "922337" not in text


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from abl_hub.cli.group import abl_hub;"
        "r = CliRunner().invoke(abl_hub, ['--help']); assert r.exit_code == 0;"
        "heavy = {'torch', 'transformers', 'gradio', 'datasets', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version() -> None:
    result = CliRunner().invoke(abl_hub, ["--version"])
    assert result.output.strip() == f"abl-hub, version {__version__}"


def test_wrong_usage_exits_with_2() -> None:
    assert CliRunner().invoke(abl_hub, ["convert"]).exit_code == 2
    assert CliRunner().invoke(abl_hub, ["convert", "x", "--seed", "none"]).exit_code == 2
    assert CliRunner().invoke(abl_hub, ["dance"]).exit_code == 2


def test_an_unknown_key_in_the_config_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "abl.toml"
    config.write_text("[convert]\nsede = 1\n")
    result = CliRunner().invoke(abl_hub, ["--config", str(config), "convert", "x"])
    assert result.exit_code == 2
    assert "no option 'sede'" in result.output


def test_the_config_is_written_like_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "abl.toml"
    config.write_text(
        "[convert]\npush = true\nno-untie = true\nmethod = ['pca', 'som']\ntest-set = 'xstest'\n"
        "layers = '2-3'\ntrust-remote-code = false\nkeep_completions = true\n"
        "writers = '*.o_proj*'\n"
    )
    words = ["--config", str(config), "convert", "x"]
    given: dict[str, Any] = {}
    monkeypatch.setattr(convert, "callback", lambda *_, **options: given.update(options))
    result = CliRunner().invoke(abl_hub, words)
    assert result.exit_code == 0, result.output
    assert (given["push_"], given["untie"], given["keep_completions"]) == (True, False, True)
    assert (given["methods"], given["test_sets"]) == (("pca", "som"), ("xstest",))
    assert (given["layers"], given["writers"]) == ((2, 3), ("*.o_proj*",))
    assert given["trust_remote_code"] is False
    config.write_text("[convert]\npush = 'yes'\n")
    assert "push is true or false" in CliRunner().invoke(abl_hub, words).output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "nan"], "no finite number"),
        (["--strength", "inf"], "no finite number"),
        (["--strength", "nan"], "no finite number"),
        (["--seed", str(2**64)], "does not fit into 64 bits"),
        (["--marker", " "], "it is empty"),
        (["--behaviour", ""], "it is empty"),
        (["--public"], "--public needs --push"),
        (["--only", "delta"], "--only needs --push"),
        (["--collection", "mine"], "--collection needs --push"),
    ],
)
def test_values_that_mean_nothing_are_wrong_usage(words: list[str], said: str) -> None:
    result = CliRunner().invoke(abl_hub, ["convert", "x", *words])
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99", ""])
@pytest.mark.parametrize("command", ["convert", "chat"])
def test_a_device_that_is_not_here(device: str, command: str) -> None:
    result = CliRunner().invoke(abl_hub, [command, "x", "--device", device])
    assert result.exit_code == 1
    assert f"There is no device {device!r} here" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_full_disk_is_no_bug(tmp_path: Path, small_output: Path) -> None:
    """Files may not grow beyond a page here, which fails as a full disk does."""
    out = shutil.copytree(small_output, tmp_path / "out")
    code = f"""
import resource, sys
from abl_hub.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.argv = ["abl-hub", "report", {str(out)!r}]
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "a bug" not in result.stderr


def test_a_file_or_nothing_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("one.txt", "model/config.json"):
        (tmp_path / name).write_text("{}")
        result = CliRunner().invoke(abl_hub, ["trace", name])
        assert result.exit_code == 1
        assert f"There is no folder {name}: it is a file." in result.stderr
    assert "There is no folder ''." in CliRunner().invoke(abl_hub, ["trace", ""]).stderr


def test_the_output_of_the_folder_where_one_stands_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "tiny")
    positive, negative = save_prompts(tmp_path)
    words = ["--positive", str(positive), "--negative", str(negative), "--dry-run"]
    monkeypatch.chdir(model)
    result = CliRunner().invoke(abl_hub, ["convert", ".", *words])
    assert f"in {tmp_path}/tiny-abliterated/merged" in result.stdout
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(abl_hub, ["convert", "./tiny/", *words])
    assert "in tiny-abliterated/merged" in result.stdout


def test_a_refusal_is_one_line_on_stderr(tmp_path: Path) -> None:
    result = CliRunner().invoke(abl_hub, ["apply", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "holds no record.json" in result.stderr
    assert "abl-hub extract" in result.stderr


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Breaks the program on purpose, where a user's mistake could not."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("abl_hub.report.record.RECORD", None)
    result = CliRunner().invoke(abl_hub, ["apply", str(tmp_path)])
    assert result.exit_code == 1
    assert "a bug in abl-hub" in result.stderr
    assert "Traceback" not in result.stderr
    debug = CliRunner().invoke(abl_hub, ["--debug", "apply", str(tmp_path)])
    assert "Traceback" in debug.stderr


def test_exported_names_are_there() -> None:
    import abl_hub as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert json.dumps(sorted(package.__all__)) == json.dumps(sorted(set(package.__all__)))


def test_an_interrupt_that_an_import_swallows_is_heard_at_the_next_stage(tmp_path: Path) -> None:
    code = """
import os, signal, sys
import click
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background
from abl_hub.cli import group, main

@click.command()
@click.pass_obj
def swallow(output):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass
    with output.stage("Reading"):
        print("went on")

group._COMMANDS["report"] = "swallower"
sys.modules["swallower"] = type(sys)("swallower")
sys.modules["swallower"].report = swallow
sys.argv = ["abl-hub", "report"]
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 130, result.stderr
    assert "went on" not in result.stdout
    assert "Interrupted." in result.stderr


def test_a_run_in_the_background_is_not_interrupted() -> None:
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts it behind an ampersand
from abl_hub.cli.interrupt import listen, raise_if_heard

listen()
os.kill(os.getpid(), signal.SIGINT)
raise_if_heard()
print("went on")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "went on\n", result.stderr
