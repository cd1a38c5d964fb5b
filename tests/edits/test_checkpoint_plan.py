"""What a checkpoint holds and what an edit of it will cost, without loading the model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from abl_hub.edits.keys import CheckpointTensors
from abl_hub.edits.matrix import Rows
from abl_hub.edits.plan import plan_checkpoint, plan_model
from abl_hub.edits.rewrite import contract
from abl_hub.edits.shards import open_shards, read_json
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
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


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def _tensors(folder: Path) -> CheckpointTensors:
    return CheckpointTensors(
        tiny.on_meta(folder), open_shards(folder).tensors, read_json(folder, "config.json")
    )


def test_every_parameter_is_read_as_transformers_loads_it(family: Family, tmp_path: Path) -> None:
    folder = tiny.save(tiny.build(family), tmp_path / "source")
    tensors = _tensors(folder)
    for name, parameter in tiny.load(folder).named_parameters(remove_duplicate=False):
        assert torch.equal(tensors.read_parameter(name), parameter), name
    assert tensors.unmapped_keys == ()


def test_products_with_directions_equal_a_plain_einsum(family: Family, tmp_path: Path) -> None:
    model = tiny.build(family)
    folder = tiny.save(model, tmp_path / "source")
    tensors = _tensors(folder)
    directions = tiny.edit_of(family, model, rank=2).directions
    for writer in tiny.writers(family, model):
        for place, stored in tensors.read_writer(writer):
            along = torch.tensordot(directions, stored.double(), ([1], [place.axis]))
            with place.matrix.codes.file.open("rb", buffering=0) as file:
                found = contract(Rows.of(place.matrix, place.axis), directions, file)
            assert torch.allclose(found, along, rtol=1e-12, atol=1e-12)


def test_experts_come_in_the_order_of_the_parameter(tmp_path: Path) -> None:
    """Twelve experts: as text, 10 comes before 2."""
    model = tiny.build(tiny.QWEN3_MOE)
    folder = tiny.save(model, tmp_path / "source")
    tensors = _tensors(folder)
    parameters = dict(model.named_parameters())
    for writer in tiny.writers(tiny.QWEN3_MOE, model):
        if "experts" in writer.parameter:
            found = list(tensors.read_writer(writer))
            assert [place.expert for place, _ in found] == list(range(12))
            for place, stored in found:
                assert torch.equal(stored, parameters[writer.parameter][place.expert])


def test_plan_counts_what_is_there(family: Family, tmp_path: Path) -> None:
    model = tiny.build(family)
    folder = tiny.save(model, tmp_path / "source", dtype=torch.bfloat16)
    found = tiny.writers(family, model)
    plan = plan_checkpoint(folder, tiny.on_meta(folder), found)
    sizes = {w.parameter: 2 * torch.Size(w.shape).numel() for w in found}
    assert plan.bytes_read == sum(sizes.values())
    everything = 2 * sum(parameter.numel() for parameter in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = 2 * model.get_input_embeddings().weight.numel() if tied else 0
    assert plan.bytes_written == everything + head
    assert bool(plan.heads) == tied
    from_model = plan_model(tiny.on_meta(folder).to(torch.bfloat16), found)
    assert (from_model.bytes_read, from_model.bytes_written) == (
        plan.bytes_read,
        plan.bytes_written,
    )


def test_671_billion_parameters_are_planned_in_seconds() -> None:
    """DeepSeek-V3's own shape, which is the default of its configuration in transformers."""
    began = time.monotonic()
    config = AutoConfig.for_model("deepseek_v3", dtype=torch.bfloat16)
    model = meta_model(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 6.6e11 < parameters < 6.8e11
    plan = plan_model(model, trace_writers(model).writers)
    assert time.monotonic() - began < 30
    assert plan.bytes_written == sum(p.numel() * p.element_size() for p in model.parameters())
    assert 0.2 < plan.bytes_read / plan.bytes_written < 0.5
    assert plan.memory_bytes < 700e6


def test_quantised_weights_are_planned_as_they_are_stored() -> None:
    """DeepSeek-V3 as it is published: FP8, but for embedding, head, routers and norms."""
    quantisation = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model = meta_model(AutoConfig.for_model("deepseek_v3", dtype=torch.bfloat16))
    plan = plan_model(
        model, trace_writers(model).writers, config={"quantization_config": quantisation}
    )
    width, inner, layers, experts = 7168, 2048, 61, 256
    codes = 58 * (experts + 1) * width * inner + 3 * width * 18432 + layers * width * 128 * 128
    embedding = 2 * 129280 * width
    assert plan.bytes_read == embedding + codes + 4 * codes // 128**2
    assert 670e9 < plan.bytes_written < 676e9
