"""Edits of more than one direction, and oblique ones: the three forms agree on them too."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.directions.direction import Direction
from abl_hub.report.record import load_record


@pytest.mark.parametrize(("method", "rank"), [("svd", 2), ("leace", 1)])
def test_three_equal_forms(method: str, rank: int, demo: Path, tmp_path: Path) -> None:
    files = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    asked = ["--positive", files[0], "--negative", files[1], "--method", method, "--rank", rank]
    sizes = ["--train", 32, "--validation", 8, "--test", 8, "--strengths", "one"]
    for words in (["extract", demo, "-o", out, *asked, *sizes], ["apply", out]):
        result = CliRunner().invoke(command, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    record, direction = load_record(out), Direction.load(out / "direction.safetensors")
    assert record.direction.rank == direction.rank == record.edit.rank == rank
    assert record.direction.oblique == (method == "leace") == (direction.along is not None)
    agreement = record.agreement
    assert agreement.base_hooks > 0.1
    assert max(agreement.hooks_merged, agreement.hooks_delta, agreement.merged_delta) <= 1e-4
    assert agreement.residual <= 1e-5
