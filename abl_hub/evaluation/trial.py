"""A short trial of edits on validation prompts, by whole replies: do they work, at what cost.

For choosing between edits. The full evaluation, with intervals and controls, is `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.intervals import Estimate, proportion
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Replies of one subject to one side's prompts.

    Args:
        replies: in the order of the prompts.
        surprise: of each under the base, nats a token.
        failed: which show the behaviour or are non-answers.
        shown: share of those that show the behaviour, 0 to 1.
    """

    replies: tuple[Reply, ...]
    surprise: tuple[float, ...]
    failed: tuple[bool, ...]
    shown: float

    @property
    def share(self) -> float:
        """Of those that show the behaviour or are non-answers, 0 to 1."""
        return sum(self.failed) / len(self.failed)

    @property
    def rate(self) -> Estimate:
        """The same with its Wilson interval."""
        return proportion(sum(self.failed), len(self.failed))


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """The unedited model's replies, made once, against which any number of edits are tried.

    Args:
        ordinary: its replies to the negative prompts.
        limit: surprise above which a reply is gibberish, nats a token.
    """

    subject: Subject
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    protocol: Protocol
    ordinary: Judged
    limit: float

    def failures(self, edited: Subject, *, like: Judged | None = None) -> Judged:
        """Replies to positive prompts; they fail if they show the behaviour or are non-answers.

        Args:
            like: what a similar edit replied, which spares what comes out alike.
        """
        return _judged(self.subject, edited, self.positive, self.protocol, self.limit, like)

    def damage(self, edited: Subject) -> Judged:
        """The same of replies to negative prompts, most of which are expected to stay."""
        return _judged(
            self.subject, edited, self.negative, self.protocol, self.limit, self.ordinary
        )

    def kl(self, edited: Subject) -> Estimate:
        """KL(base ‖ edited) over the base's replies to negative prompts, nats a token."""
        return kl_over_replies(
            self.subject,
            edited,
            self.negative,
            self.ordinary.replies,
            tokens=self.protocol.kl_tokens,
        )


def baseline(
    base: Subject, positive: Sequence[str], negative: Sequence[str], *, protocol: Protocol
) -> Baseline:
    """Let `base` reply to the negative prompts."""
    # What the base says is the measure of gibberish, and so none itself.
    ordinary = _judged(base, base, negative, protocol, math.inf, None)
    return Baseline(
        subject=base,
        positive=tuple(positive),
        negative=tuple(negative),
        protocol=protocol,
        ordinary=ordinary,
        limit=gibberish_limit(ordinary.surprise),
    )


def trial(against: Baseline, edited: Subject) -> Trial:
    """Try `edited` in full."""
    return Trial(
        failures=against.failures(edited).share,
        damage=against.damage(edited).share,
        kl=against.kl(edited).value,
    )


def _judged(
    base: Subject,
    edited: Subject,
    prompts: Sequence[str],
    protocol: Protocol,
    limit: float,
    like: Judged | None,
) -> Judged:
    with edited.active():
        replies = greedy_replies(
            edited.chat,
            prompts,
            max_new_tokens=protocol.max_new_tokens,
            rows=protocol.rows,
            drafts=like.replies if like else None,
        )
    nats = dict(enumerate(like.surprise)) if like else {}
    new = [i for i, reply in enumerate(replies) if not like or reply != like.replies[i]]
    with base.active():
        found = surprise(base.chat, [prompts[i] for i in new], [replies[i] for i in new])
    nats |= dict(zip(new, found, strict=True))
    shown = [shows_marker(reply.text, protocol.markers) for reply in replies]
    failed = [
        shows or non_answer(reply, nats[index], limit) is not None
        for index, (reply, shows) in enumerate(zip(replies, shown, strict=True))
    ]
    return Judged(
        replies=tuple(replies),
        surprise=tuple(nats[index] for index in range(len(replies))),
        failed=tuple(failed),
        shown=sum(shown) / len(prompts),
    )
