"""Outputs that were cut off, changed or mixed up: every command says so in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from abl_hub.cli.group import abl_hub
from abl_hub.directions.direction import Direction
from abl_hub.report.record import load_record

READERS = {
    "analyse": ("analyse",),
    "apply": ("apply",),
    "invert": ("apply", "--invert"),
    "card": ("card",),
    "chat": ("chat",),
    "evaluate": ("evaluate",),
    "probe": ("probe", "--suffix", "now"),
    "space": ("space", "--write-only"),
}


@pytest.fixture
def out(small_output: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_output, tmp_path / "out"))


def told(out: Path, command: str, *options: str) -> str:
    """The one line that `command` ends with."""
    result = CliRunner().invoke(abl_hub, [command, str(out), *options])
    assert result.exit_code == 1, (result.output, result.exception)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert "a bug" not in errors[0]
    return errors[0]


def _gone(file: Path) -> None:
    file.unlink()


def _cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def _of_another_model(file: Path) -> None:
    found = Direction.load(file)
    vector = torch.nn.functional.normalize(torch.arange(1.0, len(found.vector) + 1), dim=0)
    replace(found, vector=vector.to(found.vector)).save(file)


@pytest.mark.parametrize("words", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_gone, "it is not there"),
        (_cut_off, "cannot be read as a direction"),
        (_of_another_model, "not the direction of the record"),
    ],
)
def test_a_direction_that_is_not_the_record_s(
    out: Path, words: tuple[str, ...], broken: Callable[[Path], None], said: str
) -> None:
    broken(out / "direction.safetensors")
    line = told(out, *words)
    assert said in line
    assert "run `abl-hub extract` again" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is cut off, or was changed by hand"),
        ("[1]", "it is cut off, or was changed by hand"),
        ('{"schema": 1', "it is cut off, or was changed by hand"),
        ('{"schema": 1}', "with the version of abl-hub that wrote it"),
    ],
)
def test_a_record_that_is_none(out: Path, content: str, said: str) -> None:
    (out / "record.json").write_text(content)
    assert said in told(out, "report")


def test_a_record_of_another_version(out: Path) -> None:
    record = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps({**record, "wonder": 1}))
    assert "wonder: Unexpected keyword argument. Read it with the version" in told(out, "card")


def test_a_record_without_an_evaluation(out: Path) -> None:
    record = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps({**record, "evaluation": None}))
    for command in ("card", "chat", "report"):
        assert "abl-hub evaluate" in told(out, command)


def test_a_dose_that_is_no_number_leaves_the_record_as_it_is(out: Path) -> None:
    before = load_record(out)
    for doses in ("nan", "0,inf", "a"):
        result = CliRunner().invoke(abl_hub, ["analyse", str(out), "--dose", doses])
        assert result.exit_code == 2, result.output
        assert "Invalid value for '--dose'" in result.stderr
    assert load_record(out) == before


def test_a_base_with_other_weights_is_told(out: Path, demo: Path, tmp_path: Path) -> None:
    said = "are not those of the record's base"
    same = CliRunner().invoke(abl_hub, ["chat", str(out), "--base", str(demo)], input="/quit\n")
    assert same.exit_code == 0, same.output
    assert said not in same.stderr
    other = Path(shutil.copytree(demo, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: 2 * tensor for name, tensor in tensors.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    result = CliRunner().invoke(abl_hub, ["chat", str(out), "--base", str(other)], input="/quit\n")
    assert result.exit_code == 0, result.output
    assert f"The weights in {other} {said}" in result.stderr
    for file in other.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in told(out, "chat", "--base", str(other))
