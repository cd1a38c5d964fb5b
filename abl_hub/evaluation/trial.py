"""A short trial of an edit on validation prompts, by whole replies: does it work, at what cost.

For choosing between edits. The full evaluation, with intervals and controls, is `evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abl_hub.evaluation.evaluate import Protocol
from abl_hub.evaluation.likelihood import kl_over_replies
from abl_hub.evaluation.non_answers import gibberish_limit, non_answer, surprise
from abl_hub.evaluation.refusals import shows_marker
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply, greedy_replies


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Shares of replies, 0 to 1, and a divergence.

    Args:
        failures: replies to positive prompts that still show the behaviour or are non-answers.
        damage: replies to negative prompts that show it or are non-answers.
        kl: KL(base ‖ edited) over the base's replies to negative prompts, nats a token.
    """

    failures: float
    damage: float
    kl: float


def trial(
    base: Subject,
    edited: Subject,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    protocol: Protocol,
) -> Trial:
    """Try `edited` against `base`."""
    ordinary = _replies(base, negative, protocol)
    limit = gibberish_limit(_surprise(base, negative, ordinary))

    def bad(prompts: Sequence[str]) -> float:
        replies = _replies(edited, prompts, protocol)
        return sum(
            shows_marker(reply.text, protocol.markers) or non_answer(reply, nats, limit) is not None
            for reply, nats in zip(replies, _surprise(base, prompts, replies), strict=True)
        ) / len(prompts)

    kl = kl_over_replies(base, edited, negative, ordinary, tokens=protocol.kl_tokens)
    return Trial(failures=bad(positive), damage=bad(negative), kl=kl.value)


def _replies(subject: Subject, prompts: Sequence[str], protocol: Protocol) -> list[Reply]:
    with subject.active():
        return greedy_replies(
            subject.chat, prompts, max_new_tokens=protocol.max_new_tokens, rows=protocol.rows
        )


def _surprise(base: Subject, prompts: Sequence[str], replies: Sequence[Reply]) -> list[float]:
    with base.active():
        return surprise(base.chat, prompts, replies)
