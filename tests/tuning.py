"""Teaching a small chat model other replies, for a few seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch

from abl_hub.model.chat import ChatModel


def tune(
    chat: ChatModel,
    modules: Iterable[Any],
    sample: Callable[[random.Random], tuple[str, str]],
    *,
    steps: int,
    rate: float = 1e-3,
    batch: int = 16,
) -> None:
    """Train `modules` on prompts and replies that `sample` draws; the loss is of the replies."""
    model, tokenizer = chat.model, chat.tokenizer
    trained = [parameter for module in modules for parameter in module.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    torch.manual_seed(0)
    draw = random.Random(0)
    adam = torch.optim.AdamW(trained, lr=rate)
    for _ in range(steps):
        rows = []
        for question, reply in (sample(draw) for _ in range(batch)):
            end = [*tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            rows.append((chat.prompt_tokens(question), end))
        length = max(len(asked) + len(end) for asked, end in rows)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), -100)
        for row, (asked, end) in enumerate(rows):
            tokens[row, : len(asked) + len(end)] = torch.tensor([*asked, *end])
            labels[row, len(asked) : len(asked) + len(end)] = torch.tensor(end)
        adam.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        adam.step()
    model.requires_grad_(False)
