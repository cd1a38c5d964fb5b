"""A model whose refusals lie in two directions is told from one with one, and from failed runs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import DemoPrompts, prompts
from abl_hub.demo.harden import hardened_model
from abl_hub.demo.run import write_prompts
from abl_hub.report.record import Record, load_record

NEXT = "Next: the same command with --method successive --rank 2"


@pytest.fixture(scope="module")
def hardened() -> Path:
    """The demo model, trained for two minutes to refuse without any one direction."""
    return hardened_model()


def convert(
    model: Path, out: Path, *options: object, asked: DemoPrompts | None = None
) -> tuple[Record, str]:
    positive, negative = write_prompts(asked or prompts(), out.parent)
    words = ["convert", model, "-o", out, "--positive", positive, "--negative", negative]
    sizes = ["--train", 64, "--validation", 16, "--test", 24, "--random-draws", 1]
    result = CliRunner().invoke(command, [str(word) for word in (*words, *sizes, *options)])
    assert result.exit_code == 0, result.output
    return load_record(out), result.output


@pytest.mark.slow
def test_a_hardened_model_is_told_and_cured(hardened: Path, tmp_path: Path) -> None:
    record, said = convert(hardened, tmp_path / "one", "--strengths", "one")
    assert record.evaluation.base.positive.refused.value > 0.9
    assert record.evaluation.verdict.label == "NOT-SUPPRESSED"
    assert record.analysis.told.finding == "several"
    assert record.analysis.told.directions == 2
    assert record.analysis.spread
    assert NEXT in said
    # The activations of the whole model hardly show that there is a second direction.
    assert min(one.effective_rank for one in record.analysis.geometry) < 1.5
    result = CliRunner().invoke(command, ["analyse", str(tmp_path / "one")])
    assert "spread over several directions" in result.output
    cure = ["--method", "successive", "--rank", 2, "--strengths", "one"]
    record, said = convert(hardened, tmp_path / "two", *cure)
    assert record.direction.rank == 2
    assert record.evaluation.edited.positive.refused.value < 0.1
    assert record.evaluation.edited.positive.answered.value > 0.9
    assert record.evaluation.edited.negative.answered.value > 0.9
    assert record.analysis.told.finding == "several"
    assert NEXT not in said


@pytest.mark.slow
def test_fitted_strengths_do_not_hide_that_it_is_hardened(hardened: Path, tmp_path: Path) -> None:
    record, said = convert(hardened, tmp_path / "out")
    assert record.evaluation.edited.positive.refused.value > 0.25
    # First tokens alone had it that one direction is enough.
    assert record.analysis.residual[1] < 0
    assert record.analysis.told.finding == "several"
    assert NEXT in said


@pytest.mark.slow
def test_failed_runs_are_not_called_hardened(hardened: Path, demo: Path, tmp_path: Path) -> None:
    few = ["--train", 3, "--strengths", "one"]
    record, said = convert(hardened, tmp_path / "few", *few)
    assert record.analysis.told.finding == "failed"
    assert "too few to tell" in said
    asked = prompts()
    both = [*asked.positive, *asked.negative]
    random.Random(0).shuffle(both)
    mixed = DemoPrompts(positive=tuple(both[::2]), negative=tuple(both[1::2]))
    for model in (hardened, demo):
        out = tmp_path / f"mixed-{model.name}"
        record, said = convert(model, out, "--strengths", "one", asked=mixed)
        assert record.analysis.told.finding == "failed"
        assert not record.analysis.spread
        assert "mixed up" in said


@pytest.mark.slow
def test_on_the_demo_model_one_is_enough_and_a_wrong_one_has_failed(
    demo: Path, tmp_path: Path
) -> None:
    record, said = convert(demo, tmp_path / "right")
    assert record.analysis.told.finding == "one"
    assert "same command" not in said
    record, said = convert(demo, tmp_path / "wrong", "--method", "harm", "--strengths", "one")
    assert record.evaluation.verdict.label == "NOT-SUPPRESSED"
    assert record.analysis.told.finding == "failed"
    assert "the edit misses it" in said
    assert "--method projected" in said
