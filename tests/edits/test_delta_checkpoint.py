"""A delta computed from a checkpoint on disk, with traced writers: equal to merged and to hooks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.delta import WEIGHTS, write_delta
from abl_hub.edits.delta_products import products_of_checkpoint
from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import applied
from abl_hub.edits.keys import CheckpointTensors
from abl_hub.edits.shards import CONFIG, open_shards, read_json
from abl_hub.model.gains import gains_from_tensors
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from tests.edits import checkpoints as tiny
from tests.edits.checkpoints import WIDTH, Family

FAMILIES = {
    "llama": tiny.LLAMA,
    "llama tied": tiny.TIED,
    "gpt2": tiny.GPT2,
    "qwen3_moe": tiny.QWEN3_MOE,
    "gpt_oss": tiny.GPT_OSS,
    "gemma2": tiny.GEMMA2,
}
TOKENS = torch.tensor([[5, 9, 40, 77, 3]])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def test_the_three_forms_of_a_traced_edit_are_equal(family: Family, tmp_path: Path) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source")
    blueprint = meta_model(source)
    tensors = CheckpointTensors(blueprint, open_shards(source).tensors, read_json(source, CONFIG))
    writers = trace_writers(blueprint).writers
    between = gains_from_tensors(blueprint, writers, tensors.read_parameter)
    edit = remove(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)), writers)

    def small(name: str) -> torch.Tensor:
        tensor = tensors.read_parameter(name)
        assert tensor.ndim == 1, f"{name} was read whole"
        return tensor

    def write(out: Path, **options: object) -> dict[str, torch.Tensor]:
        written = write_delta(
            edit, out, model=blueprint, gains=between, base=str(source), **options
        )
        assert written.faithful
        return load_file(out / WEIGHTS)

    streamed = write(tmp_path / "delta", read=small, product=products_of_checkpoint(tensors))
    whole = write(tmp_path / "whole", read=tensors.read_parameter)
    assert streamed.keys() == whole.keys()
    for key, tensor in whole.items():
        assert torch.allclose(streamed[key], tensor, atol=1e-6), key

    merged = write_merged(edit, source, tmp_path / "merged", model=blueprint)
    model = tiny.load(source)
    base = logits(model)
    with applied(edit, model, between):
        hooks = logits(model)
    delta = logits(PeftModel.from_pretrained(model, str(tmp_path / "delta")))

    scale = float(hooks.abs().max())
    assert float((base - hooks).abs().max()) > 1e-3 * scale
    assert float((delta - hooks).abs().max()) <= 1e-5 * scale
    assert float((delta - logits(tiny.load(merged.folder))).abs().max()) <= 1e-5 * scale
