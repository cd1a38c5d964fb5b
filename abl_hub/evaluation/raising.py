"""A short trial of additions on validation prompts, by whole replies: do they bring it about?

`abl_hub.evaluation.trial` the other way round, for choosing between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.likelihood import kl_over_replies
from abl_hub.evaluation.refusals import shows_marker
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Trial
from abl_hub.model.generate import Reply, greedy_replies


@dataclass(frozen=True, kw_only=True, eq=False)
class Showing:
    """The unedited model, against which any number of additions are tried.

    Args:
        positive: prompts to which its replies show the behaviour.
        negative: prompts to which they do not, and after the addition should.
        replies: its replies to the positive prompts.
    """

    subject: Subject
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    protocol: Protocol
    replies: tuple[Reply, ...]


def showing(
    base: Subject, positive: Sequence[str], negative: Sequence[str], *, protocol: Protocol
) -> Showing:
    """Let `base` reply to the positive prompts."""
    return Showing(
        subject=base,
        positive=tuple(positive),
        negative=tuple(negative),
        protocol=protocol,
        replies=tuple(_replies(base, positive, protocol)),
    )


def raising_trial(against: Showing, edited: Subject) -> Trial:
    """Try `edited`: failures are replies to negative prompts that still do not show the behaviour,
    damage those to positive prompts that no longer do, KL is over the base's replies to these."""

    def without(prompts: Sequence[str], drafts: Sequence[Reply] | None) -> float:
        replies = _replies(edited, prompts, against.protocol, drafts)
        shown = sum(shows_marker(reply.text, against.protocol.markers) for reply in replies)
        return 1 - shown / len(prompts)

    return Trial(
        failures=without(against.negative, None),
        damage=without(against.positive, against.replies),
        kl=kl_over_replies(
            against.subject,
            edited,
            against.positive,
            against.replies,
            tokens=against.protocol.kl_tokens,
        ).value,
    )


def _replies(
    subject: Subject,
    prompts: Sequence[str],
    protocol: Protocol,
    drafts: Sequence[Reply] | None = None,
) -> list[Reply]:
    with subject.active():
        return greedy_replies(
            subject.chat,
            prompts,
            max_new_tokens=protocol.max_new_tokens,
            rows=protocol.rows,
            drafts=drafts,
        )
