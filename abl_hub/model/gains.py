"""Effective gains of the norms between writers and stream: what a norm multiplies each feature by.

Read off the norm itself, as its answer to a vector of ones, which serves the w and the 1 + w
convention alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from abl_hub.model.writers import Gain, Writer


def gains(model: Any, writers: Iterable[Writer]) -> dict[str, torch.Tensor]:
    """Gains of a loaded model: parameter name → (width,), float64."""

    def read(name: str) -> torch.Tensor:
        weight: torch.Tensor = model.get_parameter(name)
        return weight

    return gains_from_tensors(model, writers, read)


def gains_from_tensors(
    model: Any, writers: Iterable[Writer], read: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gains of a model that may lie on the meta device; `read` gives its parameters' values."""
    return {name: gain_from_tensors(model, name, read) for name in gain_names(writers)}


def gain_names(writers: Iterable[Writer]) -> tuple[str, ...]:
    """Parameters of the norms between these writers and the stream, sorted."""
    names = {
        step.parameter for writer in writers for step in writer.between if isinstance(step, Gain)
    }
    return tuple(sorted(names))


def gain_from_tensors(
    model: Any, parameter: str, read: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """The gain that belongs to one parameter, (width,), float64."""
    owner = parameter.rpartition(".")[0]
    module: nn.Module = model.get_submodule(owner)
    weight = read(parameter).detach().to("cpu", torch.float64).flatten()
    if isinstance(module, nn.LayerNorm) or len(list(module.parameters())) != 1:
        # LayerNorm answers zero to a constant; and what holds more than a gain, itself or in its
        # children, is no norm.
        return weight
    norm = copy.deepcopy(module).to_empty(device="cpu").float()
    (own,) = norm.parameters(recurse=False)
    if own.numel() != weight.numel():
        return weight
    own.data = weight.float().reshape(own.shape)
    with torch.inference_mode():
        answer: Any = norm(torch.ones(1, 1, weight.numel()))
    hidden: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
    return hidden.double().flatten().clone()
