"""What could carry a constant: linear maps whose output is added to a block's output.

Found on the graph that the tracer walks. From a block's output backwards, only additions, reshapes,
copies and constant multipliers may be met, and nothing else may read what a map puts out: then its
bias arrives in the stream at this place alone, times a number that is known, and the block itself
does not see it. A norm, a gate or a router on the way ends the search. Knows no architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite, prod
from typing import Any

import torch
from torch import nn

from abl_hub.model.graph import operation, shape_of
from abl_hub.model.writers import Carrier

Place = tuple[Any, int]
"""A node of the graph and which of its outputs."""

_TURNED = ("T", "Permute", "Transpose")
_SAME = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Clone", "ToCopy", "Alias")


@contextmanager
def block_outputs(layers: nn.ModuleList) -> Iterator[list[Place]]:
    """Collect where each block's output stands in the graph, as soon as it is there.

    Afterwards it may stand elsewhere: a later block may write into it in place.
    """
    places: list[Place] = []

    def output(_module: nn.Module, _args: Any, result: Any) -> None:
        hidden = result[0] if isinstance(result, tuple | list) else result
        places.append((hidden.grad_fn, hidden.output_nr))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(output).remove)
        yield places


def find_carriers(
    places: Sequence[Place],
    states: Sequence[torch.Tensor],
    layer_count: int,
    names: Mapping[int, str],
    *,
    with_values: bool,
) -> tuple[Carrier, ...]:
    """Every carrier of every layer, in the order of layers.

    Args:
        places: of the blocks' outputs, as `block_outputs` collects them.
        states: of the residual stream at the end: what may read an output.
        names: id of a parameter → its name.
        with_values: whether constants in the graph are the model's own; else none is trusted.
    """
    if len(places) != layer_count:
        return ()  # a block that ran twice or not at all: a constant would not be added once
    readers = _readers(states)
    return tuple(
        carrier
        for layer, place in enumerate(places)
        for carrier in _behind(layer, place, readers, names, with_values)
    )


def _readers(states: Sequence[torch.Tensor]) -> Counter[Place]:
    """How many operations read each output, of all that the states depend on."""
    readers: Counter[Place] = Counter()
    seen: set[Any] = set()
    stack = [state.grad_fn for state in states]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for child, output in node.next_functions:
            if child is not None:
                readers[child, output] += 1
                stack.append(child)
    return readers


def _behind(
    layer: int,
    place: Place,
    readers: Counter[Place],
    names: Mapping[int, str],
    with_values: bool,
) -> list[Carrier]:
    found = []
    stack: list[tuple[Place, float]] = [(place, 1.0)]
    while stack:
        (node, output), scale = stack.pop()
        if node is None:
            continue
        name = operation(node)
        if name in ("Mm", "Addmm"):
            weight, bias = _linear(node, name, readers, names)
            if weight is not None:
                found.append(Carrier(layer=layer, weight=weight, bias=bias, scale=scale))
            continue
        stack += [
            (place, scale * factor)
            for place, factor in _scaled(node, name, shape_of(node, output), with_values)
            if readers[place] == 1
        ]
    return found


def _scaled(
    node: Any, name: str, shape: tuple[int, ...], with_values: bool
) -> list[tuple[Place, float]]:
    """The operands that are in the node's output as they are, or times a known number."""
    inputs: list[Place] = list(node.next_functions)
    if name == "Add":
        factors = (1.0, float(node._saved_alpha))
    elif name in _SAME:
        factors = (1.0, 0.0)
    elif name in ("Mul", "Div") and with_values:
        number = _number(node)
        if number is None:
            return []
        factors = (number if name == "Mul" else 1 / number, 0.0)
    else:
        return []
    return [
        (place, factor)
        for place, factor in zip(inputs, factors, strict=False)
        if place[0] is not None and factor and _same_rows(shape_of(*place), shape)
    ]


def _same_rows(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a reshape between them leaves the features whole, and nothing is broadcast."""
    return prod(one) == prod(other) and one[-1:] == other[-1:]


def _number(node: Any) -> float | None:
    """What a product or quotient has as its other operand, where that is one constant.

    A number of the model's code is at hand even on the meta device; a parameter or a buffer is not.
    """
    saved = node._saved_other
    if saved is None or saved.is_meta or saved.dim() or node.next_functions[1][0] is not None:
        return None
    number = float(saved)
    return number if isfinite(number) and number else None


def _linear(
    node: Any, name: str, readers: Counter[Place], names: Mapping[int, str]
) -> tuple[str | None, str | None]:
    """Names of weight and bias of a product with a parameter that is used in it alone."""
    inputs: list[Place] = list(node.next_functions)
    weight = inputs[-1]
    if weight[0] is not None and operation(weight[0]) in _TURNED and readers[weight] == 1:
        weight = weight[0].next_functions[0]
    bias: Place = inputs[0] if name == "Addmm" else (None, 0)
    plain = name == "Mm" or (node._saved_alpha == 1 and node._saved_beta == 1)
    if not plain or not hasattr(weight[0], "variable") or readers[weight] != 1:
        return None, None
    held = None
    if hasattr(bias[0], "variable") and readers[bias] == 1:
        held = names.get(id(bias[0].variable))
    return names.get(id(weight[0].variable)), held
