"""The residual stream of a loaded model: read it, add to it, take directions out of its writes.

Context managers that leave the model as they found it. Knows vectors; not where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Sink = Callable[[int, torch.Tensor], None]
"""Receives (layer, block output (rows, tokens, width)) during a forward pass."""


@contextmanager
def reading(layers: nn.ModuleList, sink: Sink) -> Iterator[None]:
    """Hand the output of every block to `sink`, without keeping it."""

    def hook(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: sink(layer, _hidden(output))

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(hook(index)).remove)
        yield


@contextmanager
def adding(layers: nn.ModuleList, layer: int, vector: torch.Tensor) -> Iterator[None]:
    """Activation addition (Arditi et al. 2024, equation 3): h ← h + vector at one block's output.

    Args:
        vector: (width,), added at every position.
    """

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = _hidden(output)
        return _replaced(output, hidden + vector.to(hidden))

    handle = layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ablating(layers: nn.ModuleList, basis: torch.Tensor) -> Iterator[None]:
    """Directional ablation between the blocks: h ← h − h basisᵀ basis before and after each one.

    A stand-in for the edit while directions are looked for: within a block, attention's write
    still reaches the MLP (Arditi et al. 2024, equation 4, takes it out there too).

    Args:
        basis: (k, width), orthonormal; gradients reach it.
    """

    def ablated(hidden: torch.Tensor) -> torch.Tensor:
        rows = basis.to(hidden)
        return hidden - (hidden @ rows.T) @ rows

    def before(_module: nn.Module, inputs: Any, keywords: Any) -> Any:
        if inputs:
            return (ablated(inputs[0]), *inputs[1:]), keywords
        return inputs, {**keywords, "hidden_states": ablated(keywords["hidden_states"])}

    def after(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return _replaced(output, ablated(_hidden(output)))

    with ExitStack() as stack:
        first = layers[0].register_forward_pre_hook(before, with_kwargs=True)
        stack.callback(first.remove)
        for layer in layers:
            stack.callback(layer.register_forward_hook(after).remove)
        yield


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """What is taken out of one parameter's writes y: y ← y − (y · readᵀ) remove.

    Args:
        read: (k, n).
        remove: (k, n).
    """

    read: torch.Tensor
    remove: torch.Tensor

    def same_as(self, other: Projection) -> bool:
        """Whether both take out the same, exactly."""
        return torch.equal(self.read, other.read) and torch.equal(self.remove, other.remove)

    def __call__(self, writes: torch.Tensor) -> torch.Tensor:
        """Apply to `writes` (..., n); in float32 at least, returned in the dtype that came in."""
        exact = writes.to(torch.promote_types(writes.dtype, torch.float32))
        change = (exact @ self.read.to(exact).T) @ self.remove.to(exact)
        return (exact - change).to(writes.dtype)


@contextmanager
def projecting(
    model: nn.Module,
    projections: Mapping[str, tuple[int, Projection]],
    *,
    untouched: Collection[str] = frozenset(),
) -> Iterator[None]:
    """Take directions out of what parameters write, while the model runs.

    Args:
        projections: parameter name → (its stream axis, the projection).
        untouched: parameters that write too, and are to go on as they do.

    Linear layers, Conv1D, embeddings and fused experts are projected at their module's output,
    which is linear in what they hold. Any other parameter (a lone bias, a table that is indexed by
    hand) is exchanged for its edited copy, wherever it is held, and put back afterwards. Gradients
    reach the projections either way.
    """
    modules = dict(model.named_modules())
    hooked: dict[str, Projection] = {}
    exchanged: list[tuple[nn.Parameter, int, Projection]] = []
    for name, (axis, projection) in projections.items():
        owner, _, own = name.rpartition(".")
        if _output_is_linear(modules[owner], owner, projections, untouched):
            hooked[owner] = projection
        else:
            exchanged.append((modules[owner].get_parameter(own), axis, projection))

    def hook(projection: Projection) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda _module, _inputs, output: _replaced(output, projection(_hidden(output)))

    with ExitStack() as stack:
        for owner, projection in hooked.items():
            stack.callback(modules[owner].register_forward_hook(hook(projection)).remove)
        for parameter, axis, projection in exchanged:
            edited = projection(parameter.detach().movedim(axis, -1)).movedim(-1, axis)
            for held, key in _holders(model, parameter):
                stack.callback(held.__setitem__, key, parameter)
                # Not `parameter.data`, which would cut the graph between strength and output.
                held[key] = edited
        yield


def _holders(model: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[dict[str, Any], str]]:
    """Where modules hold `parameter`: (a module's own parameters, its key there)."""
    for module in model.modules():
        for key, own in module._parameters.items():
            if own is parameter:
                yield module._parameters, key


def _output_is_linear(
    module: nn.Module,
    name: str,
    projections: Mapping[str, tuple[int, Projection]],
    untouched: Collection[str],
) -> bool:
    """Whether projecting the module's output is the same as projecting all that it holds."""
    own = dict(module.named_parameters(recurse=False))
    if any(f"{name}.{key}" in untouched for key in own):
        return False
    projected = [projections[f"{name}.{key}"][1] for key in own if f"{name}.{key}" in projections]
    if any(not projected[0].same_as(other) for other in projected[1:]):
        return False
    if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        return len(projected) == len(own)
    # Fused experts: the output is a gated sum of what the experts write, biases included.
    return any(weight.ndim == 3 for weight in own.values())


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


def replaced_hidden(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """What a block put out, with change(its hidden states) in their place."""
    return _replaced(output, change(_hidden(output)))


def _replaced(output: Any, hidden: torch.Tensor) -> Any:
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    if isinstance(output, list):
        return [hidden, *output[1:]]
    return hidden
