"""Ties beside the head's: transformers drops them all with one switch, so untying must not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.edit import remove
from abl_hub.errors import EditError
from abl_hub.model.check import residual
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from tests.families import WIDTH, build, tokens


@pytest.mark.parametrize(
    ("family", "tie"),
    [("zamba2", "shared_transformer"), ("xlm-roberta-xl", "lm_head.decoder.bias")],
)
def test_a_head_is_not_untied_where_that_would_lose_other_weights(
    family: str, tie: str, tmp_path: Path
) -> None:
    model = build(family)
    model.save_pretrained(tmp_path / "source")
    blueprint = meta_model(tmp_path / "source")
    r = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    edit = remove(r, trace_writers(blueprint).writers)
    with pytest.raises(EditError, match=tie):
        write_merged(edit, tmp_path / "source", tmp_path / "out", model=blueprint)
    assert not (tmp_path / "out").exists()
    write_merged(edit, tmp_path / "source", tmp_path / "tied", model=blueprint, untie=False)
    loaded, read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "tied", attn_implementation="eager", output_loading_info=True
    )
    assert not read["missing_keys"]
    assert residual(loaded.eval(), tokens(model), edit.directions) <= 1e-5
