"""Where the residual stream can be seen: the decoder layers, and what comes after them.

Knows the module tree's structure, not its names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from abl_hub.errors import UnsupportedModelError


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers: the largest of the outermost lists of modules.

    Raises:
        UnsupportedModelError: there is no such list.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    root = decoder if isinstance(decoder, nn.Module) else model
    lists = [
        (name.count("."), module)
        for name, module in root.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    ]
    if not lists:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder layers",
            why="its residual stream cannot be located",
        )
    outermost = min(depth for depth, _ in lists)
    layers = max(
        (module for depth, module in lists if depth == outermost),
        key=lambda module: sum(weight.numel() for weight in module.parameters()),
    )
    name = next(name for name, module in model.named_modules() if module is layers)
    return name, layers


@contextmanager
def stream_states(model: nn.Module, layers: nn.ModuleList) -> Iterator[list[torch.Tensor]]:
    """Collect every state of the residual stream of one forward pass, in order.

    The input of the first layer, the output of each, and the input of the norm after the last one
    (some models add to the stream between the two).
    """
    states: list[torch.Tensor] = []
    after_last = False

    def first_input(_module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal after_last
        states.append(_hidden(args[0] if args else kwargs["hidden_states"]))
        after_last = False

    def output(module: nn.Module, _args: Any, result: Any) -> None:
        nonlocal after_last
        states.append(_hidden(result))
        after_last = module is layers[-1]

    def norm_input(_module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal after_last
        hidden = args[0] if args else kwargs.get("hidden_states")
        if after_last and hidden is not None and hidden.shape[-1] == states[-1].shape[-1]:
            after_last = False
            states.append(hidden)

    inside = set(layers.modules())
    norms = [
        module
        for module in model.modules()
        if module not in inside and "norm" in type(module).__name__.lower()
    ]
    with ExitStack() as stack:
        stack.callback(layers[0].register_forward_pre_hook(first_input, with_kwargs=True).remove)
        for layer in layers:
            stack.callback(layer.register_forward_hook(output).remove)
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(norm_input, with_kwargs=True).remove)
        yield states


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden
