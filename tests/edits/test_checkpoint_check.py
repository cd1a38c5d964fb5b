"""The check of written tensors tells an edited checkpoint from an unedited one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.checkpoint_check import check_checkpoint, checkpoint_residual
from abl_hub.errors import EditError
from tests.edits import checkpoints as tiny


@pytest.mark.parametrize(
    ("dtype", "rounding", "limit"),
    [
        (torch.float32, "nearest", 1e-7),
        (torch.bfloat16, "nearest", 3e-3),
        (torch.bfloat16, "cancelling", 1e-4),
    ],
)
@pytest.mark.parametrize("family", [tiny.TIED, tiny.GPT2, tiny.QWEN3_MOE, tiny.GEMMA2])
def test_gone_after_and_there_before(
    family: tiny.Family, dtype: torch.dtype, rounding: str, limit: float, tmp_path: Path
) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source", dtype=dtype)
    model = tiny.on_meta(source)
    edit = tiny.edit_of(family, model)
    merged = write_merged(
        edit, source, tmp_path / "out", model=tiny.on_meta(source), rounding=rounding
    )
    assert checkpoint_residual(edit, source, model=tiny.on_meta(source)) > 0.05
    edited = tiny.on_meta(merged.folder)
    assert checkpoint_residual(edit, merged.folder, model=edited) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [tiny.TIED, tiny.GPT2, tiny.QWEN3_MOE, tiny.GEMMA2])
def test_only_an_edited_checkpoint_passes(
    family: tiny.Family, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source", dtype=dtype)
    model = tiny.on_meta(source)
    edit = tiny.edit_of(family, model)
    merged = write_merged(edit, source, tmp_path / "out", model=model)
    check_checkpoint(edit, merged.folder, model=tiny.on_meta(merged.folder))
    with pytest.raises(EditError, match="still lies along"):
        check_checkpoint(edit, source, model=tiny.on_meta(source))


@pytest.mark.parametrize(
    ("dtype", "left"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-3), (torch.float16, 4e-3)]
)
def test_what_is_left_is_held_to_the_limit_of_the_dtype(
    dtype: torch.dtype, left: float, tmp_path: Path
) -> None:
    """Far below what a random direction holds, and more than rounding leaves."""
    source = tiny.save(tiny.build(tiny.LLAMA), tmp_path / "source", dtype=dtype)
    model = tiny.on_meta(source)
    edit = tiny.edit_of(tiny.LLAMA, model)
    share = checkpoint_residual(edit, source, model=model)
    nearly = tiny.edit_of(tiny.LLAMA, model, strength=1 - left / share)
    merged = write_merged(nearly, source, tmp_path / "out", model=model)
    assert 0.3 * left < checkpoint_residual(edit, merged.folder, model=model) < 1.5 * left
    with pytest.raises(EditError, match=r"of model\..* still lies along"):
        check_checkpoint(edit, merged.folder, model=model)
