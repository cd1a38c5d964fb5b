"""Strengths chosen by whole replies to validation prompts: all one, or a point of the fitted front.

The fit sees training prompts, the choice validation prompts; test prompts are for the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.direction import Direction
from abl_hub.edits.edit import Gains
from abl_hub.edits.hooks import prepared
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Baseline
from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import continuations, greedy_replies
from abl_hub.model.writers import Trace
from abl_hub.progress import Progress
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Finalist, StrengthsPoint, StrengthsRecord
from abl_hub.stages.edit import asked_edit, scaled
from abl_hub.strengths.fit import Budget, Fitted, Lesson, fit
from abl_hub.strengths.groups import groups

_NEGATIVE_REPLIES = 48
_REPLY_TOKENS = 24
_PREVIEW_STEPS = 8
_SAME_FAILURES = 0.02


def choose_strengths(
    chat: ChatModel,
    against: Baseline,
    lesson: Callable[[], Lesson],
    directions: Mapping[str, Sequence[Direction]],
    finalists: tuple[Finalist, ...],
    trace: Trace,
    between: Gains,
    recipe: Recipe,
    progress: Progress,
) -> tuple[Direction, StrengthsRecord]:
    """The direction that is removed, and how strongly.

    Args:
        against: the unedited model on the validation prompts.
        lesson: makes what is fitted on, if there is a fit.
        directions: of each method, the one that was judged first.
        finalists: those, judged at one strength; the best one first.
    """
    best = finalists[0]
    uniform = directions[best.method][0]
    if recipe.strengths == "one":
        return uniform, StrengthsRecord(reason="one strength was asked for")
    one_reply = 1 / min(len(against.positive), len(against.negative))
    if recipe.strengths == "auto" and best.failures + best.damage <= one_reply:
        return uniform, StrengthsRecord(
            reason="one strength leaves at most one failed validation reply: nothing to improve"
        )
    names, shown = groups(trace), lesson()

    def fitted(direction: Direction, budget: Budget) -> list[Fitted]:
        return fit(
            chat,
            asked_edit(recipe, direction, trace),
            names,
            between,
            shown,
            budget=budget,
            seed=recipe.seed,
            progress=progress,
        )

    candidates = [direction for found in directions.values() for direction in found]
    fittest = candidates[0]
    if len(candidates) > 1:
        # Which direction suits fitted strengths best is told by a short fit, not by one strength.
        preview = Budget(steps=_PREVIEW_STEPS, kl_weights=Budget().kl_weights[:1])
        fittest = min(candidates, key=lambda direction: fitted(direction, preview)[0].loss)
    front = fitted(fittest, Budget(steps=recipe.budget))

    def subject(strengths: Mapping[str, float]) -> Subject:
        edit = scaled(asked_edit(recipe, fittest, trace), names, strengths)
        return Subject(chat=chat, active=prepared(edit, chat.model, between))

    points = [_uniform(finalist) for finalist in finalists]
    with progress.stage("Judging strengths", len(front)) as advance:
        for point in front:
            edited = subject(point.strengths)
            points.append(
                StrengthsPoint(
                    method=fittest.method,
                    layer=fittest.layer,
                    kl_weight=point.kl_weight,
                    strengths=point.strengths,
                    failures=against.failures(edited),
                    kl=against.kl(edited),
                )
            )
            advance(1)
    record = _chosen(
        points,
        recipe,
        max(one_reply, _SAME_FAILURES),
        lambda point: against.damage(subject(point.strengths)),
    )
    return uniform if record.chosen is None else fittest, record


def _chosen(
    points: list[StrengthsPoint],
    recipe: Recipe,
    tolerance: float,
    damage: Callable[[StrengthsPoint], float],
) -> StrengthsRecord:
    """Of the points that fail as rarely as the best, the lowest KL that does no damage.

    Damage is only measured where the choice depends on it.
    """
    allowed = [
        index
        for index, point in enumerate(points)
        if recipe.strengths == "auto" or point.kl_weight is not None
    ]
    fewest = min(points[index].failures for index in allowed)
    order = sorted(
        (index for index in allowed if points[index].failures <= fewest + tolerance),
        key=lambda index: points[index].kl,
    )
    least = min((point.damage for point in points if point.damage is not None), default=0.0)
    best, hurt = order[0], math.inf
    for index in order:
        found = points[index].damage
        found = damage(points[index]) if found is None else found
        points[index] = replace(points[index], damage=found)
        if found < hurt:
            best, hurt = index, found
        if found <= least:
            break
    taken = points[best]
    reason = (
        f"of {len(points)} points, those within {tolerance:.2f} of the fewest failures on "
        f"validation prompts ({fewest:.2f}); of these the lowest KL ({taken.kl:.4f}) without damage"
    )
    return StrengthsRecord(
        reason=reason,
        chosen=None if taken.kl_weight is None else best,
        points=tuple(points),
    )


def lesson_of(
    chat: ChatModel, contrast: Contrast, behaviour_tokens: tuple[int, ...], *, rows: int
) -> Lesson:
    """What strengths are fitted on: training prompts, and the model's own replies to some."""
    negative = contrast.negative.train[:_NEGATIVE_REPLIES]
    replies = greedy_replies(chat, negative, max_new_tokens=_REPLY_TOKENS, rows=rows)
    return Lesson(
        positive=[chat.prompt_tokens(prompt) for prompt in contrast.positive.train],
        negative=continuations(chat, negative, replies),
        behaviour_tokens=behaviour_tokens,
    )


def _uniform(finalist: Finalist) -> StrengthsPoint:
    return StrengthsPoint(
        method=finalist.method,
        layer=finalist.layer,
        kl_weight=None,
        strengths={},
        failures=finalist.failures,
        damage=finalist.damage,
        kl=finalist.kl,
    )
