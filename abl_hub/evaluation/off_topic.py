"""Fluent replies to another question: no likelier under their own prompt than under others.

How much likelier the unedited model finds a reply behind its own prompt than behind other prompts
of the set is (an estimate of) their mutual information. A reply that has far less of it than the
model's own replies have is off its topic. Says nothing where those have little themselves. A
measure for rates: of replies that were exchanged with others' on purpose it finds most, not all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import Reply, continuations
from abl_hub.model.teacher_forcing import token_log_probs

_OTHERS = 3
_FEWEST_PROMPTS = 8
_ORDINARY_QUANTILE = 0.01
_LEAST_NATS = 0.05


def relevance(
    chat: ChatModel, prompts: Sequence[str], replies: Sequence[Reply], *, seed: int = 0
) -> list[float]:
    """Nats a token by which `chat` finds each reply likelier behind its own prompt than, on
    average, behind three other prompts of the set; 0 for an empty reply or a lone prompt.
    """
    own = _nats(chat, prompts, replies)
    draw = random.Random(seed)
    others = [0.0] * len(replies)
    for _ in range(_OTHERS):
        found = _nats(chat, _exchanged(prompts, draw), replies)
        others = [sum(pair) for pair in zip(others, found, strict=True)]
    return [other / _OTHERS - mine for other, mine in zip(others, own, strict=True)]


def off_topic_limit(ordinary: Sequence[float]) -> float | None:
    """Relevance below which a reply is off its topic: half of nearly the least of the base's own.

    None where that is next to nothing, or there are fewer than eight.
    """
    if len(ordinary) < _FEWEST_PROMPTS:
        return None
    limit = 0.5 * float(torch.tensor(list(ordinary)).quantile(_ORDINARY_QUANTILE))
    return limit if limit >= _LEAST_NATS else None


def _exchanged(prompts: Sequence[str], draw: random.Random) -> list[str]:
    """For each prompt another one, where there is one."""
    return [
        draw.choice([other for other in prompts if other != prompt] or [prompt])
        for prompt in prompts
    ]


def _nats(chat: ChatModel, prompts: Sequence[str], replies: Sequence[Reply]) -> list[float]:
    """Mean negative log-likelihood of each reply, nats a token."""
    kept = [i for i, reply in enumerate(replies) if reply.tokens]
    sequences = continuations(chat, [prompts[i] for i in kept], [replies[i] for i in kept])
    result = [0.0] * len(replies)
    for index, found in zip(kept, token_log_probs(chat, sequences), strict=True):
        result[index] = float(-found.mean())
    return result
