"""What PEFT makes of a configuration: its layers in a skeleton of a model, and their places.

Asked rather than known: keys and shapes are read off what PEFT itself has built, without a weight.
Knows no writer and no direction.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from abl_hub.model.meta import weightless_copy

PREFIX = "base_model.model."
"""What PEFT puts before a module's name in an adapter file."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """One LoRA: where its factors are stored, and which parameter they change.

    Args:
        parameter: name of the parameter.
        shape: of the parameter.
        a: key of A; (r, in), fused experts (r · experts, in), expert-major.
        b: key of B; (out, r), fused experts (out, r · experts), rank-major.
        out_axis: axis of the parameter that B carries.
        experts: number of experts where the parameter is fused (3-D), else None.
        bias: key of the bias that is added to the module's output, with `lora_bias`.
    """

    parameter: str
    shape: tuple[int, ...]
    a: str
    b: str
    out_axis: int
    experts: int | None = None
    bias: str | None = None


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` on the meta device, ties kept; costs no weights, changes nothing."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        # Buffers, and what a forward pass has left in a module's attributes.
        for tensor in (*module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, torch.Tensor):
                memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    return copy.deepcopy(model, memo)


def lora_config(rank: int) -> dict[str, Any]:
    """Fields of `LoraConfig` that all our adapters share; no module is named yet."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [],
    }


def wrapped(model: PreTrainedModel, config: Mapping[str, Any]) -> PeftModel:
    """A skeleton of `model` with PEFT's layers in it, as `config` asks for them.

    Raises:
        ValueError: PEFT refuses.
    """
    fields = {key: value for key, value in config.items() if key != "peft_type"}
    with quiet_about_ties():
        return PeftModel(skeleton(model), LoraConfig(**fields), low_cpu_mem_usage=True)


@contextmanager
def quiet_about_ties() -> Iterator[None]:
    """Without PEFT's warning that an embedding is tied: a note of the layout says it better."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        yield


@contextmanager
def quiet_about_biases() -> Iterator[None]:
    """PEFT warns that a bias cannot be merged into a layer without one; our notes say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")
        yield


def low_rank(
    model: PreTrainedModel, made: PeftModel, config: Mapping[str, Any]
) -> tuple[LowRank, ...]:
    """Every LoRA that PEFT has made of `config`."""
    found = []
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    for key, module in made.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        base = key.removeprefix(PREFIX).replace(".base_layer", "")
        if isinstance(module, ParamWrapper):
            parameter = f"{base}.{module.parameter_name}"
            shape = shapes[parameter]
            fused = len(shape) == 3
            transposed = bool(getattr(module.get_base_layer(), "is_transposed", False))
            found.append(
                LowRank(
                    parameter=parameter,
                    shape=shape,
                    a=f"{key}.lora_A.weight",
                    b=f"{key}.lora_B.weight",
                    out_axis=(2 if transposed else 1) if fused else 0,
                    experts=shape[0] if fused else None,
                )
            )
        elif isinstance(module, LoraEmbedding):
            found.append(
                LowRank(
                    parameter=f"{base}.weight",
                    shape=shapes[f"{base}.weight"],
                    a=f"{key}.lora_embedding_A",
                    b=f"{key}.lora_embedding_B",
                    out_axis=1,
                )
            )
        else:
            found.append(
                LowRank(
                    parameter=f"{base}.weight",
                    shape=shapes[f"{base}.weight"],
                    a=f"{key}.lora_A.weight",
                    b=f"{key}.lora_B.weight",
                    out_axis=1 if isinstance(module.get_base_layer(), Conv1D) else 0,
                    bias=f"{key}.lora_B.bias" if config.get("lora_bias") else None,
                )
            )
    return tuple(found)


def held_by_peft(model: PreTrainedModel, config: Mapping[str, Any]) -> PeftModel | str:
    """A skeleton with the LoRAs of `config`, or why PEFT cannot hold them or not read them back."""
    try:
        made = wrapped(model, config)
    except ValueError as error:
        return " ".join(str(error).split())
    # Given the state by hand, PEFT does not check its shapes: it takes a bias for a wrong one.
    saved = get_peft_model_state_dict(made, made.state_dict(), save_embedding_layers=False)
    loaded: Any = set_peft_model_state_dict(made, saved, low_cpu_mem_usage=True)
    if loaded.unexpected_keys:
        return "PEFT renames what it saves of this module, and drops it when it loads"
    if any(isinstance(module, ParamWrapper) for module in made.modules()) and not _runs(made):
        return "the model reads this module from outside, and PEFT's layer hides it"
    return made


def _runs(made: PeftModel) -> bool:
    """Whether the model still finds all that it reads, with PEFT's layers in it."""
    tokens = torch.full((1, 5), 3)
    # Kernels for grouped experts take no tensors without values.
    base: Any = made.get_base_model()
    base.set_experts_implementation("batched_mm")
    try:
        try:
            made(input_ids=tokens.to("meta"), use_cache=False)
        except (NotImplementedError, RuntimeError):  # it asks for values
            weightless_copy(made)(input_ids=tokens, use_cache=False)
    except AttributeError:
        return False
    return True
