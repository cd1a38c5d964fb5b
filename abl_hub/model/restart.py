"""A forward pass that begins in the middle: earlier layers hand on what they once computed.

What changes only from layer l on (activation addition) need not be computed before it, and several
such changes run as one batch. Exact for
models whose layers pass on nothing but the residual stream; `RestartedPass.exact` tells, by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch

from abl_hub.model.chat import ChatModel
from abl_hub.model.stream import replaced_hidden

TOLERANCE = 1e-3


class RestartedPass:
    """One batch of the unedited model, kept layer by layer.

    Args:
        chat: the model; what is kept is (layers, rows, tokens, width) in its dtype.
        tokens: (rows, tokens), int64.
        last: index of each row's last token; what follows is filling.
    """

    def __init__(self, chat: ChatModel, tokens: torch.Tensor, last: torch.Tensor) -> None:
        self.chat = chat
        self.tokens = tokens
        self.last = last

    @cached_property
    def base(self) -> tuple[torch.Tensor, list[Any]]:
        """(rows, vocabulary) logits of the unedited model, and what each layer put out."""
        outputs: list[Any] = [None] * len(self.chat.layers)

        def keep(index: int) -> Callable[[Any, Any, Any], None]:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                outputs[index] = output

            return hook

        with ExitStack() as stack:
            for index, layer in enumerate(self.chat.layers):
                stack.callback(layer.register_forward_hook(keep(index)).remove)
            return self.last_logits(), outputs

    def rows(self, kept: Sequence[int]) -> RestartedPass:
        """The same with only the rows `kept`."""
        logits, outputs = self.base
        part = RestartedPass(self.chat, self.tokens[list(kept)], self.last[list(kept)])
        count = len(self.tokens)

        def cut(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
                return value[list(kept)]
            return type(value)(map(cut, value)) if isinstance(value, tuple | list) else value

        part.__dict__["base"] = (logits[list(kept)], [cut(output) for output in outputs])
        return part

    @torch.inference_mode()
    def last_logits(self) -> torch.Tensor:
        """Logits after each row's last token in the model's present state, (rows, vocabulary)."""
        start = int(self.last.min())
        kept = self.tokens.shape[1] - start
        logits = self.chat.model(
            input_ids=self.tokens, use_cache=False, logits_to_keep=kept
        ).logits[:, -kept:]
        rows = torch.arange(len(self.last), device=logits.device)
        found: torch.Tensor = logits[rows, (self.last - start).to(logits.device)].float()
        return found

    def repeated(self, count: int) -> RestartedPass:
        """The same prompts `count` times, one set after the other."""
        return RestartedPass(self.chat, self.tokens.repeat(count, 1), self.last.repeat(count))

    def added(self, layer: int, vectors: torch.Tensor) -> torch.Tensor:
        """Logits with each of `vectors` (n, width) added to what `layer` puts out, all at once.

        Nothing up to that layer runs. Returns (n, prompts, vocabulary) float32.
        """
        _, outputs = self.base
        rows, count = len(self.tokens), len(vectors)
        each = vectors.repeat_interleave(rows, dim=0)[:, None]
        output = replaced_hidden(
            _repeated(outputs[layer], rows, count), lambda hidden: hidden + each.to(hidden)
        )
        many = self.repeated(count)
        with ExitStack() as stack:
            for module in self.chat.layers[: layer + 1]:
                held = module.__dict__.get("forward")
                module.__dict__["forward"] = _handing(output)
                stack.callback(_restore, module, held)
            logits = many.last_logits()
        return logits.view(count, -1, logits.shape[-1])

    def exact(self, layer: int) -> bool:
        """Whether beginning after `layer`, with several copies of the prompts, changes nothing."""
        logits, _ = self.base
        try:
            again = self.added(layer, torch.zeros(2, self.chat.width))
        except RuntimeError:
            return False  # a layer that keeps something beside the stream, for so many rows
        scale = float(logits.abs().max())
        return float((again - logits).abs().max()) <= TOLERANCE * max(1.0, scale)


def _repeated(value: Any, rows: int, count: int) -> Any:
    """What a layer put out for `rows` rows, for `count` times as many."""
    if isinstance(value, torch.Tensor):
        fits = value.ndim > 0 and len(value) == rows
        return value.repeat(count, *[1] * (value.ndim - 1)) if fits else value
    if isinstance(value, tuple | list):
        return type(value)(_repeated(one, rows, count) for one in value)
    return value


def _handing(output: Any) -> Callable[..., Any]:
    return lambda *_inputs, **_keywords: output


def _restore(module: Any, held: Any) -> None:
    # An instance has a `forward` of its own where accelerate has placed its hooks.
    if held is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = held
