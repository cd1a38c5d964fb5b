"""Counts forward-token computations: rows × tokens × decoder layers, over all forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from abl_hub.model.chat import ChatModel


@dataclass
class Count:
    """Token computations so far; a layer that was not run is not counted."""

    tokens: int = 0


@contextmanager
def counted(chat: ChatModel) -> Iterator[Count]:
    """Count what runs through the decoder layers: their norms or attention see what they see."""
    count = Count()

    def hook(_module: Any, inputs: Any, keywords: Any) -> None:
        hidden = inputs[0] if inputs else keywords["hidden_states"]
        count.tokens += hidden.shape[0] * hidden.shape[1]

    with ExitStack() as stack:
        for layer in chat.layers:
            # A layer's own hooks run even where its forward is replaced; its child's do not.
            child = next(layer.children())
            stack.callback(child.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield count
