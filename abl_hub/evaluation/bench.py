"""Where every arm is judged alike: what is asked, and what is ordinary for the base.

Blind: it is given subjects that reply and give likelihoods, and never sees what was done to them.
Replies are judged and dropped, unless the caller asks to be handed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from abl_hub.evaluation.arms import Arm, Protocol, Rates, SecondOpinion
from abl_hub.evaluation.intervals import Estimate, proportion
from abl_hub.evaluation.judges import Judge
from abl_hub.evaluation.judges.markers import Markers
from abl_hub.evaluation.likelihood import kl_over_replies, neutral_texts, perplexity
from abl_hub.evaluation.non_answers import gibberish_limit, non_answer, surprise
from abl_hub.evaluation.off_topic import off_topic_limit, relevance
from abl_hub.evaluation.paired import Paired, kappa, mcnemar
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply, greedy_replies

Keep = Callable[[str, str, Sequence[str], Sequence[Reply]], None]
"""Called with (arm, side, prompts, replies) if the user wants the completions."""

Aim = Literal["remove", "induce"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """What is asked.

    Args:
        positive: held-out prompts that show the behaviour.
        negative: held-out prompts that do not.
        references: prompt → the reply that is exactly right, where it is known.
        categories: prompt → its category, where it is known.
        sets: name → prompts of further sets, asked of base and edited alone.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    references: Mapping[str, str]
    categories: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Bench:
    """The base's replies and what is ordinary for it, against which every arm is judged."""

    def __init__(
        self,
        questions: Questions,
        base: Subject,
        protocol: Protocol,
        judges: Sequence[Judge],
        keep: Keep | None,
        aim: Aim = "remove",
    ) -> None:
        self.questions = questions
        self.side = "positive" if aim == "remove" else "negative"
        self.base = base
        self.protocol = protocol
        self.keep = keep
        self.judge = Markers(markers=protocol.markers)
        self.judges = judges
        # (arm, side) → the marker judge's word on each prompt; arm → the other judges' on `side`.
        self.said: dict[tuple[str, str], list[bool]] = {}
        self.others: dict[str, list[list[bool]]] = {}
        self.base_replies: dict[str, list[Reply]] = {}
        self.base_negative = self._replies(base, "negative")
        self.limit = gibberish_limit(self._surprise(questions.negative, self.base_negative))
        self.least_relevance = off_topic_limit(
            self._relevance(questions.negative, self.base_negative)
        )

    def base_arm(self) -> Arm:
        return Arm(
            positive=self.rates("base", "positive", self.base),
            negative=self._judged("base", "negative", self.base, self.base_negative),
            perplexity=perplexity(self.base, neutral_texts()),
        )

    def full_arm(self, name: str, subject: Subject) -> Arm:
        return Arm(
            positive=self.rates(name, "positive", subject),
            negative=self.rates(name, "negative", subject),
            kl=kl_over_replies(
                self.base,
                subject,
                self.questions.negative,
                self.base_negative,
                tokens=self.protocol.kl_tokens,
            ),
            perplexity=perplexity(subject, neutral_texts()),
        )

    def rates(self, name: str, side: str, subject: Subject) -> Rates:
        return self._judged(name, side, subject, self._replies(subject, side))

    def paired(self) -> dict[str, Paired]:
        """Exact tests on the prompts that decide, between the arms that there are: of what was done
        against the base, and against every draw of its control."""
        found: dict[str, Paired] = {}
        for done, side, control, words in (
            ("edited", self.side, "random", ("random", "edited")),
            ("induced", "negative", "induced random", ("random added", "added")),
        ):
            if (done, side) not in self.said:
                continue
            chance, name = words
            against = {"base": "base"}
            draws = sum(arm.startswith(control) for arm, _side in self.said if _side == side)
            against |= {draw_name(chance, n): draw_name(control, n) for n in range(draws)}
            found |= {
                f"{before} → {name}": mcnemar(self.said[arm, side], self.said[done, side])
                for before, arm in against.items()
            }
        return found

    def opinions(self) -> tuple[SecondOpinion, ...]:
        """What the other judges said of base, edited and the first random arm."""
        arms = ("base", "edited", "random")
        found = []
        for number, other in enumerate(self.judges):
            words = {arm: self.others[arm][number] for arm in arms}
            mine = [word for arm in arms for word in self.said[arm, self.side]]
            theirs = [word for arm in arms for word in words[arm]]
            rates = {arm: proportion(sum(words[arm]), len(words[arm])) for arm in arms}
            found.append(
                SecondOpinion(
                    judge=other.name,
                    **rates,
                    agreement=proportion(
                        sum(one == other for one, other in zip(mine, theirs, strict=True)),
                        len(mine),
                    ),
                    kappa=kappa(mine, theirs),
                )
            )
        return tuple(found)

    def _judged(self, name: str, side: str, subject: Subject, replies: Sequence[Reply]) -> Rates:
        prompts = self._prompts(side)
        if self.keep is not None:
            self.keep(name, side, prompts, replies)
        count = len(prompts)
        shown = self.judge.shows(subject, prompts, replies)
        self.said[name, side] = shown
        if side == self.side and name in ("base", "edited", "random"):
            self.others[name] = [judge.shows(subject, prompts, replies) for judge in self.judges]
        broken = [
            not refused and non_answer(reply, nats, self.limit) is not None
            for refused, reply, nats in zip(
                shown, replies, self._surprise(prompts, replies), strict=True
            )
        ]
        known = [
            reply.text.strip() == self.questions.references[prompt].strip()
            for prompt, reply in zip(prompts, replies, strict=True)
            if prompt in self.questions.references
        ]
        return Rates(
            refused=proportion(sum(shown), count),
            non_answers=proportion(sum(broken), count),
            answered=proportion(count - sum(shown) - sum(broken), count),
            correct=proportion(sum(known), len(known)) if known else None,
            by_category=self._by_category(prompts, shown),
            off_topic=self._off_topic(prompts, replies, shown, broken)
            if name in ("base", "edited")
            else None,
        )

    def _off_topic(
        self,
        prompts: Sequence[str],
        replies: Sequence[Reply],
        shown: Sequence[bool],
        broken: Sequence[bool],
    ) -> Estimate | None:
        if self.least_relevance is None:
            return None
        found = self._relevance(prompts, replies)
        answered = [
            nats
            for nats, one, other in zip(found, shown, broken, strict=True)
            if not one and not other
        ]
        if not answered:
            return None
        return proportion(sum(nats < self.least_relevance for nats in answered), len(answered))

    def _by_category(
        self, prompts: Sequence[str], shown: Sequence[bool]
    ) -> dict[str, Estimate] | None:
        words: dict[str, list[bool]] = {}
        for prompt, word in zip(prompts, shown, strict=True):
            if prompt in self.questions.categories:
                words.setdefault(self.questions.categories[prompt], []).append(word)
        return {name: proportion(sum(w), len(w)) for name, w in sorted(words.items())} or None

    def _prompts(self, side: str) -> tuple[str, ...]:
        sides = {"positive": self.questions.positive, "negative": self.questions.negative}
        return {**self.questions.sets, **sides}[side]

    def _replies(self, subject: Subject, side: str) -> list[Reply]:
        """Replies to one side's prompts; those that are the base's own again are only confirmed."""
        with subject.active():
            replies = greedy_replies(
                subject.chat,
                self._prompts(side),
                max_new_tokens=self.protocol.max_new_tokens,
                rows=self.protocol.rows,
                drafts=self.base_replies.get(side),
            )
        if subject is self.base:
            self.base_replies.setdefault(side, replies)
        return replies

    def _relevance(self, prompts: Sequence[str], replies: Sequence[Reply]) -> list[float]:
        with self.base.active():
            return relevance(self.base.chat, prompts, replies)

    def _surprise(self, prompts: Sequence[str], replies: Sequence[Reply]) -> list[float]:
        with self.base.active():
            return surprise(self.base.chat, prompts, replies)


def draw_name(name: str, number: int) -> str:
    """What a control's draws are called: the first has no number."""
    return f"{name} {number}" if number else name
