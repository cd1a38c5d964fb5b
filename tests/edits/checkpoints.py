"""Tiny checkpoints on disk, with writers named by hand: the tests' own truth, not the tracer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from abl_hub.edits.edit import Edit, orthonormal
from abl_hub.model.writers import Gain, Writer

WIDTH = 32
VOCABULARY = 96


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build one kind of model small, and what writes to its stream."""

    model_type: str
    options: dict[str, object]
    writers: tuple[tuple[str, int], ...]
    """(end of the parameter's name, stream axis)"""
    gains: dict[str, str] | None = None
    """End of the writer's name → name of the norm behind it, in the same layer."""


_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_DENSE = (("embed_tokens.weight", 1), ("o_proj.weight", 0), ("mlp.down_proj.weight", 0))

LLAMA = Family(model_type="llama", options=_LLAMA | {"tie_word_embeddings": False}, writers=_DENSE)
TIED = Family(model_type="llama", options=_LLAMA | {"tie_word_embeddings": True}, writers=_DENSE)
GPT2 = Family(
    model_type="gpt2",
    options={
        "n_embd": WIDTH,
        "n_layer": 3,
        "n_head": 4,
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "eos_token_id": 2,
    },
    writers=(
        ("wte.weight", 1),
        ("wpe.weight", 1),
        ("c_proj.weight", 1),
        ("c_proj.bias", 0),
    ),
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    options=_LLAMA
    | {
        "num_experts": 12,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "tie_word_embeddings": False,
    },
    writers=(("embed_tokens.weight", 1), ("o_proj.weight", 0), ("experts.down_proj", 1)),
)
GPT_OSS = Family(
    model_type="gpt_oss",
    options=_LLAMA
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    writers=(
        ("embed_tokens.weight", 1),
        ("o_proj.weight", 0),
        ("o_proj.bias", 0),
        ("experts.down_proj", 2),
        ("experts.down_proj_bias", 1),
    ),
)
GEMMA2 = Family(
    model_type="gemma2",
    options=_LLAMA | {"query_pre_attn_scalar": 8},
    writers=_DENSE,
    gains={
        "o_proj.weight": "post_attention_layernorm.weight",
        "mlp.down_proj.weight": "post_feedforward_layernorm.weight",
    },
)


def build(family: Family, *, seed: int = 0) -> PreTrainedModel:
    """A float32 model whose parameters are all random, gains and biases too."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family.model_type, **family.options)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(
    model: PreTrainedModel,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "20KB",
) -> Path:
    """Save as transformers does, in many shards."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def save_under(model: PreTrainedModel, folder: Path, rename: Callable[[str], str]) -> Path:
    """Save in one file, under other keys than transformers would choose."""
    tensors = {
        rename(name): parameter.detach().clone() for name, parameter in model.named_parameters()
    }
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


def on_meta(folder: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def writers(family: Family, model: PreTrainedModel) -> tuple[Writer, ...]:
    found = []
    for name, parameter in model.named_parameters():
        for end, axis in family.writers:
            if name.endswith(end):
                norm = (family.gains or {}).get(end)
                layer = ".".join(name.split(".")[:3])
                found.append(
                    Writer(
                        parameter=name,
                        axis=axis,
                        shape=tuple(parameter.shape),
                        between=(Gain(parameter=f"{layer}.{norm}"),) if norm else (),
                    )
                )
    return tuple(found)


def edit_of(
    family: Family, model: PreTrainedModel, *, rank: int = 1, strength: float = 1.0
) -> Edit:
    directions = orthonormal(
        torch.randn(rank, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    )
    found = writers(family, model)
    return Edit(directions=directions, writers=found, strengths=(strength,) * len(found))


def edited_in_memory(
    model: PreTrainedModel,
    edit: Edit,
    factors_of: Callable[[Writer], tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Every writer after W − Σ u (v · W), in float64, by a plain einsum over the whole tensor."""
    parameters = dict(model.named_parameters())
    result = {}
    for writer in edit.writers:
        weight = parameters[writer.parameter].detach().double().movedim(writer.axis, 0)
        read, remove = factors_of(writer)
        along = torch.einsum("kn,n...->k...", read, weight)
        result[writer.parameter] = (weight - torch.einsum("kn,k...->n...", remove, along)).movedim(
            0, writer.axis
        )
    return result
