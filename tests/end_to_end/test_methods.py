"""Edits of more than one direction, and oblique ones: the three forms agree on them too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.directions.direction import Direction
from abl_hub.edits.edit import Edit, orthonormal
from abl_hub.report.record import load_record
from abl_hub.stages.evaluate import random_edits, random_subspaces


@pytest.mark.parametrize(("method", "rank"), [("svd", 2), ("leace", 1)])
def test_three_equal_forms(method: str, rank: int, demo: Path, tmp_path: Path) -> None:
    files = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    asked = ["--positive", files[0], "--negative", files[1], "--method", method, "--rank", rank]
    sizes = [
        "--train",
        32,
        "--validation",
        8,
        "--test",
        8,
        "--strengths",
        "one",
        "--random-draws",
        1,
    ]
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
    if direction.along is not None:
        result = CliRunner().invoke(command, ["evaluate", str(out)])
        assert result.exit_code == 0, result.output
        evaluation = load_record(out).evaluation
        # One that subtracts no more than it reads does 170 times less.
        assert evaluation.random[0].kl.value > 0.05 * evaluation.edited.kl.value


def test_a_control_subtracts_as_its_edit_does() -> None:
    generator = torch.Generator().manual_seed(1)
    basis, drawn = torch.randn(2, 3, 24, generator=generator, dtype=torch.float64)
    basis = orthonormal(basis)
    across = 5.0 * (drawn - drawn @ basis.T @ basis)
    oblique = Edit(directions=basis, along=basis + across, writers=(), strengths=())
    controls = random_edits(oblique, 3, seed=0)
    for control in controls:  # that directions · alongᵀ is the identity, `Edit` checks
        assert torch.allclose(control.along @ control.along.T, oblique.along @ oblique.along.T)
    assert not torch.allclose(controls[0].along, controls[1].along)
    (plain,) = random_edits(Edit(directions=basis, writers=(), strengths=()), 1, seed=0)
    assert plain.along is None
    assert torch.equal(plain.directions, random_subspaces(24, 3, 1, 0)[0])
