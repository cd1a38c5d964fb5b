"""The evaluation: base, edited and random controls on the held-out prompts, arm by arm.

Blind: it is given subjects that reply and give likelihoods, and never sees what was done to them.
Replies are judged and dropped, unless the caller asks to be handed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Arm, Evaluation, Protocol, Rates, SecondOpinion, SystemArms
from abl_hub.evaluation.intervals import Estimate, proportion
from abl_hub.evaluation.judges import Judge
from abl_hub.evaluation.judges.markers import Markers
from abl_hub.evaluation.likelihood import kl_over_replies, neutral_texts, perplexity
from abl_hub.evaluation.non_answers import gibberish_limit, non_answer, surprise
from abl_hub.evaluation.off_topic import off_topic_limit, relevance
from abl_hub.evaluation.paired import Paired, kappa, mcnemar
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.verdict import Arms, Verdict, judge, judge_addition
from abl_hub.model.generate import Reply, greedy_replies
from abl_hub.progress import SILENT, Progress

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


def evaluate(
    questions: Questions,
    *,
    base: Subject,
    edited: Subject,
    random: Sequence[Subject],
    induced: Subject | None = None,
    induced_random: Sequence[Subject] = (),
    aim: Aim = "remove",
    protocol: Protocol | None = None,
    judges: Sequence[Judge] = (),
    keep: Keep | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Measure every arm and apply the verdict's rule.

    Args:
        aim: "remove" is judged on positive prompts; "induce", an edit that brings the behaviour
            about, on negative ones, and its control has random directions added.
        judges: asked besides the marker judge, whose word decides.

    Raises:
        EvaluationError: there is no random control.
    """
    if not random:
        raise EvaluationError(
            "There is no random control", why="without it a falling rate shows nothing"
        )
    judge_replies = _Bench(questions, base, protocol or Protocol(), judges, keep, aim)
    added = [("induced", induced)] if induced is not None else []
    added += [(_draw("induced random", number), one) for number, one in enumerate(induced_random)]
    with progress.stage("Evaluating", 2 + len(random) + len(added)) as advance:
        before = judge_replies.base_arm()
        advance(1)
        after = judge_replies.full_arm("edited", edited)
        advance(1)
        controls = []
        for number, subject in enumerate(random):
            if number == 0:
                controls.append(judge_replies.full_arm("random", subject))
            else:
                rates = judge_replies.rates(_draw("random", number), judge_replies.side, subject)
                controls.append(Arm(positive=rates) if aim == "remove" else Arm(negative=rates))
            advance(1)
        induction = {}
        for name, subject in added:
            induction[name] = Arm(negative=judge_replies.rates(name, "negative", subject))
            advance(1)
    shown = induction.pop("induced", None)
    chance = tuple(induction.values())
    paired = judge_replies.paired()
    return Evaluation(
        base=before,
        edited=after,
        random=tuple(controls),
        induced=shown,
        induced_random=chance[0] if chance else None,
        induced_random_further=chance[1:],
        verdict=_verdict(aim, before, after, controls, shown, chance, paired),
        protocol=judge_replies.protocol,
        paired=paired,
        opinions=judge_replies.opinions(),
    )


def evaluate_system(
    questions: Questions,
    condition: Literal["empty", "none", "default"],
    *,
    base: Subject,
    edited: Subject,
    protocol: Protocol | None = None,
    keep: Keep | None = None,
    progress: Progress = SILENT,
) -> SystemArms:
    """Rates of two subjects that are asked under another system prompt; nothing else is new."""
    with progress.stage("Evaluating under another system prompt", 2) as advance:
        bench = _Bench(questions, base, protocol or Protocol(), (), keep)
        arms = []
        for name, subject in (("base", base), ("edited", edited)):
            positive = bench.rates(name, "positive", subject)
            arms.append(Arm(positive=positive, negative=bench.rates(name, "negative", subject)))
            advance(1)
    paired = {
        side: mcnemar(bench.said["base", side], bench.said["edited", side])
        for side in ("positive", "negative")
    }
    return SystemArms(condition=condition, base=arms[0], edited=arms[1], paired=paired)


def evaluate_sets(
    questions: Questions,
    *,
    base: Subject,
    edited: Subject,
    protocol: Protocol | None = None,
    keep: Keep | None = None,
    progress: Progress = SILENT,
) -> dict[str, tuple[Rates, Rates, Paired]]:
    """Rates of base and edited on every one of `questions.sets`, and their exact paired test."""
    with progress.stage("Evaluating on test sets", 2 * len(questions.sets)) as advance:
        bench = _Bench(questions, base, protocol or Protocol(), (), keep)
        found: dict[str, tuple[Rates, Rates, Paired]] = {}
        for name in questions.sets:
            before = bench.rates("base", name, base)
            advance(1)
            after = bench.rates("edited", name, edited)
            advance(1)
            paired = mcnemar(bench.said["base", name], bench.said["edited", name])
            found[name] = (before, after, paired)
    return found


class _Bench:
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
            against |= {_draw(chance, n): _draw(control, n) for n in range(draws)}
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


def _draw(name: str, number: int) -> str:
    """What a control's draws are called: the first has no number."""
    return f"{name} {number}" if number else name


def _verdict(
    aim: Aim,
    before: Arm,
    after: Arm,
    controls: Sequence[Arm],
    induced: Arm | None,
    chance: Sequence[Arm],
    paired: Mapping[str, Paired],
) -> Verdict:
    if aim == "remove":
        return judge(_arms(before, after, controls, induced, chance, paired))
    return judge_addition(_arms(before, after, controls, after, controls, paired))


def _arms(
    before: Arm,
    after: Arm,
    controls: Sequence[Arm],
    induced: Arm | None,
    chance: Sequence[Arm],
    paired: Mapping[str, Paired],
) -> Arms:
    def refused(arm: Arm | None, side: str) -> float | None:
        rates = None if arm is None else (arm.positive if side == "positive" else arm.negative)
        return None if rates is None else rates.refused.value

    def lost(side: str) -> float:
        old = before.positive if side == "positive" else before.negative
        new = after.positive if side == "positive" else after.negative
        if old is None or new is None:
            return 0.0
        return new.non_answers.value - old.non_answers.value

    def drawn(arms: Sequence[Arm], side: str) -> list[float]:
        return [rate for arm in arms if (rate := refused(arm, side)) is not None]

    def ps(done: str) -> list[float]:
        return [test.p for pair, test in paired.items() if pair.endswith(f"→ {done}")]

    return Arms(
        base=refused(before, "positive") or 0.0,
        edited=refused(after, "positive") or 0.0,
        random=min(drawn(controls, "positive")),
        base_negative=refused(before, "negative") or 0.0,
        induced=refused(induced, "negative"),
        induced_random=max(drawn(chance, "negative"), default=None),
        new_non_answers=max(lost("positive"), lost("negative")),
        p=max(ps("edited")),
        induced_p=max(ps("added"), default=None),
    )
