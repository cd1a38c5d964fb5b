"""The merged checkpoint against the same edit in memory, in float64, on a loaded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.edit import factors
from tests.edits import checkpoints as tiny
from tests.edits.checkpoints import Family

FAMILIES = {
    "llama": tiny.LLAMA,
    "llama tied": tiny.TIED,
    "gpt2": tiny.GPT2,
    "qwen3_moe": tiny.QWEN3_MOE,
    "gpt_oss": tiny.GPT_OSS,
    "gemma2": tiny.GEMMA2,
}
TIED = ("llama tied", "gpt2", "gemma2")
TOKENS = torch.tensor([[5, 9, 40, 77, 3]])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.mark.parametrize(("rank", "strength"), [(1, 1.0), (2, 0.6)])
def test_equals_the_edit_in_memory(
    family: Family, rank: int, strength: float, tmp_path: Path
) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source")
    base = tiny.load(source)
    edit = tiny.edit_of(family, base, rank=rank, strength=strength)
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    assert merged.edited_keys

    gains = {
        step.parameter: _effective_gain(base, step.parameter)
        for writer in edit.writers
        for step in writer.between
    }

    def factors_of(writer):
        found = factors(edit, writer, strength, gains)
        return found.read, found.remove

    wanted = tiny.edited_in_memory(base, edit, factors_of)
    got = dict(tiny.load(merged.folder).named_parameters())
    for name, parameter in base.named_parameters():
        if name in wanted:
            error = (got[name].double() - wanted[name]).norm() / wanted[name].norm()
            assert error <= 1e-6, name
            assert not torch.equal(got[name], parameter), name
        else:
            assert torch.equal(got[name], parameter), name


def _effective_gain(model, name):
    """Gemma's norms multiply by 1 + w."""
    return 1.0 + dict(model.named_parameters())[name].detach().double()
