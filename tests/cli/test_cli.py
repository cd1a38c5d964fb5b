"""The command line as a stranger meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from abl_hub import __version__
from abl_hub.cli.group import _COMMANDS, abl_hub


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(abl_hub, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: abl-hub" in result.output


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
