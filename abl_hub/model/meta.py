"""A model without weights: built from its configuration on the `meta` device, to be traced.

Knows how transformers must be asked so that the graph of a forward pass is made of plain
operations; allocates nothing, so a 671 B configuration costs less than a second.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from abl_hub.errors import SourceError, UnsupportedModelError

# Fused kernels hide what they compute from the graph; these two are written out.
_PLAIN = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}


def meta_model(
    source: Path | PretrainedConfig, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of a folder's config.json, or of a configuration, on the meta device.

    Raises:
        SourceError, UnsupportedModelError: as `read_config`, or not a causal language model that
            transformers can build.
    """
    config = (
        read_config(source, trust_remote_code=trust_remote_code)
        if isinstance(source, Path)
        else source
    )
    build: Any = auto_class(config).from_config
    try:
        with torch.device("meta"):
            model: Any = build(config, trust_remote_code=trust_remote_code, **_PLAIN)
    except (ValueError, KeyError, AttributeError, TypeError, ImportError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{config.model_type} is not a causal language model that transformers can build",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            next_step="Give a chat model",
        ) from error
    built: PreTrainedModel = model.eval()
    return built


def wrapper_of(
    folder: Path, model: PreTrainedModel, *, trust_remote_code: bool = False
) -> str | None:
    """Of which class of several modalities `model` is the language part; None where it is whole.

    Some configurations of such classes build a causal language model of their text part alone.
    """
    config = read_config(folder, trust_remote_code=trust_remote_code)
    if config.get_text_config() is config:
        return None
    if model.config.get_text_config() is not model.config:
        return type(model).__name__
    return (config.architectures or [type(config).__name__])[0]


def weightless_copy(model: Any) -> Any:
    """A copy of a meta model on the CPU: each weight is one zero, seen at all of its places.

    For models whose code asks for values (how many tokens did each expert get?), which the meta
    device does not have. Takes no memory, but computes: minutes for the largest.
    """
    copied = copy.deepcopy(model)
    parameters: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in parameters:
                zeros = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
                parameters[id(weight)] = nn.Parameter(zeros, requires_grad=weight.requires_grad)
            module.register_parameter(name, parameters[id(weight)])
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return copied


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class that builds `config`: causal, or for what is none a multimodal wrapper's."""
    causal: Any = AutoModelForCausalLM
    wrapper: Any = AutoModelForImageTextToText
    known = type(config) in wrapper._model_mapping and type(config) not in causal._model_mapping
    return wrapper if known else causal


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model folder, as transformers reads it.

    Raises:
        SourceError: config.json cannot be read.
        UnsupportedModelError: transformers knows no such model, or it holds values that no such
            model has.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        if _is_broken(folder / "config.json"):
            raise SourceError(
                f"The configuration in {folder} cannot be read",
                why="config.json is not JSON",
                next_step="Download the model again",
            ) from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"The configuration in {folder} is not one that transformers knows",
            why=first,
            next_step="Upgrade transformers, or add --trust-remote-code if you trust its code",
        ) from error
    except StrictDataclassError as error:
        raise UnsupportedModelError(
            f"The configuration in {folder} is not one of its kind of model",
            why=" ".join(str(error).split()),
            next_step="Repair config.json, or download the model again",
        ) from error
    return config


def _is_broken(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return False
