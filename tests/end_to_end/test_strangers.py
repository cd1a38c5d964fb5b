"""An output from somewhere else runs none of its Python before this command line says that it may.

The code here writes a file when it is imported.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from click.testing import CliRunner, Result

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.evaluation.tasks import Tasks
from abl_hub.hub.local import LocalHub
from abl_hub.report.record import load_record, save_record
from abl_hub.stages.compare import compare_folder
from abl_hub.stages.inputs import located
from abl_hub.stages.runtime import Runtime
from tests.spaces.serving import serving

_CODE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def stranger(demo: Path, small_output: Path, tmp_path: Path) -> Path:
    """An output whose record allows the code of its base, which writes `ran` beside it."""
    base = with_code(Path(shutil.copytree(demo, tmp_path / "base")), tmp_path / "ran")
    out = Path(shutil.copytree(small_output, tmp_path / "out"))
    record = json.loads((out / "record.json").read_text())
    record["recipe"].update(trust_remote_code=True, source=str(base))
    (out / "record.json").write_text(json.dumps(record))
    with_code(out / "merged", tmp_path / "ran")
    return out


def with_code(model: Path, ran: Path) -> Path:
    (model / "own.py").write_text(_CODE.format(ran=str(ran)))
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (model / "config.json").write_text(json.dumps(config))
    return model


def told(*words: str) -> Result:
    result = CliRunner().invoke(command, words, input="y\ny\ny\n")
    assert result.exit_code == 1, (result.output, result.exception)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "bug in abl-hub" not in line
    return result


@pytest.mark.parametrize(
    "words",
    [
        ["apply"],
        ["apply", "--invert"],
        ["evaluate"],
        ["analyse"],
        ["probe", "--suffix", "in short"],
        ["push", "--only", "delta"],
    ],
    ids=" ".join,
)
def test_a_record_allows_no_code(
    stranger: Path,
    words: list[str],
    tmp_path: Path,
    local_hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    assert "give --trust-remote-code" in told(words[0], str(stranger), *words[1:]).stderr
    assert not (tmp_path / "ran").exists()


def test_this_command_line_does(stranger: Path, tmp_path: Path) -> None:
    words = ["probe", str(stranger), "--suffix", "in short", "--trust-remote-code"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert (tmp_path / "ran").exists()


def test_chat_and_space_ask_nobody(stranger: Path, tmp_path: Path) -> None:
    """transformers would ask on stdin, and take the first line of the chat for its answer."""
    base = str(tmp_path / "base")
    told("chat", str(stranger), "--base", base)
    with serving(compare_folder(str(stranger), tmp_path, Runtime(), base=base)) as url:
        with urlopen(f"{url}/config") as answer:
            assert "could not be loaded" in answer.read().decode()
    assert not (tmp_path / "ran").exists()


def test_a_record_starts_no_tasks_of_a_folder(small_output: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small_output, tmp_path / "out"))
    record = json.loads((out / "record.json").read_text())
    record["recipe"]["tasks"] = {"names": ["mine"], "path": str(tmp_path), "limit": None}
    (out / "record.json").write_text(json.dumps(record))
    assert "--tasks-path" in told("evaluate", str(out)).stderr


@pytest.mark.parametrize(
    "words", [["apply"], ["chat"], ["space", "--write-only"], ["push", "--only", "delta"]]
)
def test_a_folder_that_is_gone_is_no_hub_id(
    small_output: Path,
    words: list[str],
    tmp_path: Path,
    local_hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else's model may have that name there."""
    out = Path(shutil.copytree(small_output, tmp_path / "out"))
    record = json.loads((out / "record.json").read_text())
    record["recipe"]["source"] = record["source"]["name"] = "me/gone"
    (out / "record.json").write_text(json.dumps(record))
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    assert "no folder me/gone" in told(words[0], str(out), *words[1:]).stderr
    assert not [request for request in local_hub.requests if "me/gone" in request.path]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("report", ["report"]),
        ("report/report.html", ["report"]),
        ("completions.jsonl", ["evaluate", "--keep-completions"]),
        ("licence/LICENSE", ["card"]),
    ],
)
def test_links_lead_nowhere(
    small_output: Path, place: str, words: list[str], tmp_path: Path
) -> None:
    """What a stranger linked is neither written over nor carried into what is published."""
    out = Path(shutil.copytree(small_output, tmp_path / "out"))
    record = json.loads((out / "record.json").read_text())
    record["source"]["licence_files"] = ["LICENSE"]
    (out / "record.json").write_text(json.dumps(record))
    mine = tmp_path / "mine"
    shutil.rmtree(out / place, ignore_errors=True)
    (out / place).parent.mkdir(exist_ok=True)
    if "." in place or "LICENSE" in place:
        mine.write_text("of this machine")
    else:
        mine.mkdir()
    (out / place).symlink_to(mine)
    assert f"{out / place} is a link" in told(words[0], str(out), *words[1:]).stderr
    assert mine.read_text() == "of this machine" if mine.is_file() else not any(mine.iterdir())


def test_a_record_names_no_file_elsewhere(small_output: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small_output, tmp_path / "out"))
    (tmp_path / "mine").write_text("of this machine")
    (out / "licence").mkdir(exist_ok=True)
    record = json.loads((out / "record.json").read_text())
    record["source"]["licence_files"] = ["../../mine"]
    (out / "record.json").write_text(json.dumps(record))
    assert "mine is missing" in told("card", str(out)).stderr


def test_a_record_is_not_written_through_a_link(small_output: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small_output, tmp_path / "out"))
    mine = tmp_path / "mine"
    mine.write_text("of this machine")
    (out / ".record.json.partial").symlink_to(mine)
    save_record(load_record(out), out)
    assert mine.read_text() == "of this machine"
    assert load_record(out)


def test_a_recipe_means_the_same_in_every_folder(
    small_recipe: abl_hub.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    (tmp_path / "p.jsonl").touch()
    recipe = replace(
        small_recipe,
        source="me/model",
        positive="p.jsonl#c + org/n:train#text",
        negative="paper-harmless",
        test_sets=("xstest", "refusal:p.jsonl"),
        tasks=Tasks(names=("mine",), path="me"),
    )
    found = located(recipe)
    assert found.source == str(tmp_path / "me" / "model")
    assert found.positive == f"{tmp_path}/p.jsonl#c + org/n:train#text"
    assert found.negative == "paper-harmless"
    assert found.test_sets == ("xstest", f"refusal:{tmp_path}/p.jsonl")
    assert found.tasks == Tasks(names=("mine",), path=str(tmp_path / "me"))
    assert located(found) == found
    assert located(replace(recipe, source="org/elsewhere")).source == "org/elsewhere"
