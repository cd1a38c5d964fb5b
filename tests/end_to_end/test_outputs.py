"""Nothing is removed that abl-hub did not make, and one process makes an output at a time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.cli.output import Output
from abl_hub.cli.show import show_record
from abl_hub.errors import OutputError
from abl_hub.report.record import load_record, save_record
from abl_hub.stages.output import MARKER, making
from tests.chat_models import save_chat_model, save_prompts


def earlier_output(folder: Path) -> Path:
    """A folder that passes for an earlier output."""
    folder.mkdir()
    (folder / "record.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["notes.txt", "record.json"])
def test_a_partial_folder_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "out.partial" / name
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(OutputError, match=r"out\.partial was not made by abl-hub"):
        making(tmp_path / "out", overwrite=True).__enter__()
    assert [path.name for path in mine.parent.iterdir()] == [name]


def test_out_old_is_somebody_elses(tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out")
    mine = earlier_output(tmp_path / "out.old") / "precious"
    mine.touch()
    with making(out, overwrite=True) as place:
        (place.folder / "new").touch()
        place.publish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.old"]
    assert [path.name for path in out.iterdir()] == ["new"]
    assert mine.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_kept(tmp_path: Path, overwrite: bool) -> None:
    mine = tmp_path / "out" / "precious"
    with making(tmp_path / "out", overwrite=overwrite) as place:
        (place.folder / "record.json").touch()
        mine.parent.mkdir()
        mine.touch()
        with pytest.raises(OutputError):
            place.publish()
    assert mine.exists()
    assert (tmp_path / "out.partial" / "record.json").exists()  # hours of work


def test_an_old_output_comes_back_where_the_new_one_cannot_be_put(tmp_path: Path) -> None:
    out = earlier_output(tmp_path / "out")
    with making(out, overwrite=True) as place:
        shutil.rmtree(place.folder)
        with pytest.raises(OutputError):
            place.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "record.json").exists()


def test_an_output_is_made_once_at_a_time(tmp_path: Path) -> None:
    """The lock is of the open folder: a second one in this process is like another process."""
    out = tmp_path / "out"
    with making(out, overwrite=False) as place:
        (place.folder / "record.json").touch()
        with pytest.raises(OutputError, match="Another process is making"):
            making(out, overwrite=True).__enter__()
        assert (place.folder / "record.json").exists()
        place.publish()
    with making(out, overwrite=True):
        assert (out / "record.json").exists()


def test_a_run_that_got_nowhere_leaves_nothing(tmp_path: Path) -> None:
    with making(tmp_path / "out", overwrite=False) as place:
        (place.folder / "half").touch()
    assert not list(tmp_path.iterdir())


def test_a_run_whose_prompts_changed_starts_over(
    small_recipe: abl_hub.Recipe, small_output: Path, tmp_path: Path
) -> None:
    """It could never go on: the stages refuse a record of other prompts."""
    prompts = tmp_path / "refused.jsonl"
    shutil.copyfile(small_recipe.positive, prompts)
    recipe = replace(small_recipe, positive=str(prompts))
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / MARKER).touch()
    (partial / "merged").mkdir()
    shutil.copyfile(small_output / "direction.safetensors", partial / "direction.safetensors")
    begun = replace(abl_hub.load_record(small_output), recipe=recipe, agreement=None)
    save_record(begun, partial)
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[::-1]))
    record = abl_hub.convert(recipe, tmp_path / "out")
    assert record.positive.splits != begun.positive.splits
    assert not partial.exists()


def test_the_empty_folder_where_one_stands_becomes_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "tiny")
    positive, negative = save_prompts(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    words = ["--positive", positive, "--negative", negative, "--method", "difference"]
    words += ["--strengths", "one", "--max-new-tokens", 4, "--random-draws", 1]
    result = CliRunner().invoke(command, ["convert", str(model), "-o", ".", *map(str, words)])
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert (out / "record.json").is_file()
    assert (out / "merged" / "model.safetensors").is_file()


def test_what_is_printed_names_the_behaviour_and_the_next_step(
    small_output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = load_record(small_output)
    assert record.evaluation is not None
    test = next(iter(record.evaluation.paired.values()))
    paired = {"random → edited": replace(test, p=0.01), "random 1 → edited": replace(test, p=0.02)}
    named = replace(
        record,
        direction=replace(record.direction, behaviour="formality"),
        evaluation=replace(record.evaluation, paired=paired),
    )
    show_record(Output(), named, small_output)
    printed = capsys.readouterr().out
    header = next(line for line in printed.splitlines() if "non-answers" in line)
    assert header.split()[0] == "formality"
    assert "refus" not in header
    assert "random 1 → edited" in printed
    assert "p = 0.020 (exact McNemar test, the weakest of 2 draws)" in printed
    assert "p = 0.010" not in printed
    assert "merged/, delta/, direction/, direction.safetensors, record.json" in printed
    assert f"Next: abl-hub chat {small_output}, abl-hub report {small_output}" in printed
