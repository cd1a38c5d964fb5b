"""The evaluation: base, edited and random controls on the held-out prompts, arm by arm.

Knows which arms there are and what of them decides; how one is judged, `abl_hub.evaluation.bench`
knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Arm, Evaluation, Protocol, Rates, SystemArms
from abl_hub.evaluation.bench import Aim, Bench, Keep, Questions, draw_name
from abl_hub.evaluation.judges import Judge
from abl_hub.evaluation.paired import Paired, mcnemar
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.verdict import Arms, Verdict, judge, judge_addition
from abl_hub.progress import SILENT, Progress


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
    bench = Bench(questions, base, protocol or Protocol(), judges, keep, aim)
    added = [("induced", induced)] if induced is not None else []
    added += [
        (draw_name("induced random", number), one) for number, one in enumerate(induced_random)
    ]
    with progress.stage("Evaluating", 2 + len(random) + len(added)) as advance:
        before = bench.base_arm()
        advance(1)
        after = bench.full_arm("edited", edited)
        advance(1)
        controls = []
        for number, subject in enumerate(random):
            if number == 0:
                controls.append(bench.full_arm("random", subject))
            else:
                rates = bench.rates(draw_name("random", number), bench.side, subject)
                controls.append(Arm(positive=rates) if aim == "remove" else Arm(negative=rates))
            advance(1)
        induction = {}
        for name, subject in added:
            induction[name] = Arm(negative=bench.rates(name, "negative", subject))
            advance(1)
    shown = induction.pop("induced", None)
    chance = tuple(induction.values())
    paired = bench.paired()
    return Evaluation(
        base=before,
        edited=after,
        random=tuple(controls),
        induced=shown,
        induced_random=chance[0] if chance else None,
        induced_random_further=chance[1:],
        verdict=_verdict(aim, before, after, controls, shown, chance, paired),
        protocol=bench.protocol,
        paired=paired,
        opinions=bench.opinions(),
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
        bench = Bench(questions, base, protocol or Protocol(), (), keep)
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
        bench = Bench(questions, base, protocol or Protocol(), (), keep)
        found: dict[str, tuple[Rates, Rates, Paired]] = {}
        for name in questions.sets:
            before = bench.rates("base", name, base)
            advance(1)
            after = bench.rates("edited", name, edited)
            advance(1)
            paired = mcnemar(bench.said["base", name], bench.said["edited", name])
            found[name] = (before, after, paired)
    return found


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
