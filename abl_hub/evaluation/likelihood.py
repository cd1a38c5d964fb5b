"""KL divergence over whole replies, and perplexity on neutral text.

KL of the first token alone calls a model excellent whose every reply is gibberish; so it is taken
over the unedited model's own greedy reply, token by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from abl_hub.evaluation.intervals import Estimate, mean
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply, continuations
from abl_hub.model.teacher_forcing import (
    Continuation,
    divergences,
    log_probs,
    portions,
    token_log_probs,
)

_NEUTRAL = Path(__file__).with_name("neutral.txt")


def kl_over_replies(
    base: Subject,
    edited: Subject,
    prompts: Sequence[str],
    base_replies: Sequence[Reply],
    *,
    tokens: int,
) -> Estimate:
    """KL(base ‖ edited) over the first `tokens` tokens of the base's own replies.

    Nats a token: the mean over each reply's tokens, then over prompts, with its 95% interval.
    """
    sequences = continuations(base.chat, prompts, base_replies, limit=tokens)
    values: list[float] = []
    for chosen in portions(base.chat, sequences):
        # A batch at a time: the base's tables of it wait while the edited model runs.
        part = [sequences[index] for index in chosen]
        with base.active():
            before = [table.cpu() for _, table in log_probs(base.chat, part)]
        with edited.active():
            nats = divergences(before, edited.chat, part)
        values += [float(one.mean().clamp_min(0.0)) for one in nats]
    return mean(values)


def neutral_texts() -> tuple[str, ...]:
    """Paragraphs about nothing in particular, written for this purpose."""
    return tuple(p.strip() for p in _NEUTRAL.read_text(encoding="utf-8").split("\n\n") if p.strip())


def perplexity(subject: Subject, texts: Sequence[str]) -> Estimate:
    """Perplexity on `texts`: exp of the mean loss a token; the interval is over texts."""
    sequences = []
    for text in texts:
        ids = subject.chat.tokenizer(text)["input_ids"][: _window(subject)]
        sequences.append(Continuation(tokens=tuple(ids), judged=len(ids) - 1))
    with subject.active():
        found = token_log_probs(subject.chat, sequences)
    losses = [float(-one.mean()) for one in found]
    weights = [len(one) for one in found]
    spread = mean(losses)
    centre = math.fsum(x * w for x, w in zip(losses, weights, strict=True)) / sum(weights)
    shift = centre - spread.value
    return Estimate(
        value=math.exp(min(centre, 700.0)),
        low=math.exp(min(spread.low + shift, 700.0)),
        high=math.exp(min(spread.high + shift, 700.0)),
        count=sum(weights),
    )


def _window(subject: Subject) -> int:
    config = subject.chat.model.config.get_text_config()
    return min(512, int(getattr(config, "max_position_embeddings", None) or 512))
