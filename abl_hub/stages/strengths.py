"""Strengths chosen by whole replies to validation prompts: all one, or a point of the fitted front.

The fit sees training prompts, the choice validation prompts; test prompts are for the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.direction import Direction
from abl_hub.edits.edit import Gains
from abl_hub.edits.hooks import prepared
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Baseline, Judged
from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import continuations, greedy_replies
from abl_hub.model.writers import Trace
from abl_hub.progress import Progress
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Finalist, StrengthsPoint, StrengthsRecord
from abl_hub.stages.edit import asked_edit, scaled
from abl_hub.strengths.fit import Budget, Lesson, fit
from abl_hub.strengths.groups import groups

_NEGATIVE_REPLIES = 32
_REPLY_TOKENS = 16
_SAME_FAILURES = 0.02
# Nats a token. One strength for all keeps the null exact, which is worth as much; beyond it fitted
# strengths cost a fraction (benchmarks/strengths.py).
_NEGLIGIBLE_KL = 0.01


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
        finalists: those, judged at one strength; the best one first. May be empty where strengths
            are fitted anyway and there is one method.
    """
    first = next(iter(directions))
    uniform = directions[finalists[0].method if finalists else first][0]
    if recipe.strengths == "one":
        return uniform, StrengthsRecord(reason="one strength was asked for")
    one_reply = 1 / min(len(against.positive), len(against.negative))
    if recipe.strengths == "auto" and _good_enough(finalists[0], one_reply):
        return uniform, StrengthsRecord(
            reason="one strength leaves at most one failed validation reply, at a KL of "
            f"{finalists[0].kl:.4f}: nothing to improve"
        )
    names = groups(trace)
    candidates = [direction for found in directions.values() for direction in found]
    edits = [asked_edit(recipe, direction, trace) for direction in candidates]
    if not any(strength for edit in edits for strength in edit.strengths):
        return uniform, StrengthsRecord(reason="every strength is 0: nothing is removed")
    budget = Budget(steps=recipe.budget)
    front = fit(
        chat, edits, names, between, lesson(), budget=budget, seed=recipe.seed, progress=progress
    )
    fittest, edit = candidates[front.chosen], edits[front.chosen]
    fitted = [
        StrengthsPoint(
            method=fittest.method,
            layer=fittest.layer,
            position=fittest.position,
            kl_weight=point.kl_weight,
            strengths=point.strengths,
            opening=point.opening,
            training_kl=point.kl,
        )
        for point in front.points
    ]

    def subject(point: StrengthsPoint) -> Subject:
        strong = scaled(edit, names, point.strengths)
        return Subject(chat=chat, active=prepared(strong, chat.model, between))

    # A first token that shows the behaviour is seldom taken back: these need no whole replies.
    fewest = max(budget.opening, min(point.opening for point in front.points))
    worth = [index for index, point in enumerate(front.points) if point.opening <= fewest]
    tolerance = max(one_reply, _SAME_FAILURES)
    order = sorted(worth, key=lambda index: front.points[index].kl)
    failures: dict[int, float] = {}
    judged: Judged | None = None
    with progress.stage("Judging strengths", len(order)) as advance:
        for index in order:
            judged = against.failures(subject(fitted[index]), like=judged)
            failures[index] = judged.share
            fitted[index] = replace(fitted[index], failures=failures[index])
            advance(1)
            if failures[index] <= tolerance:
                # Every other point costs more, and could not be told to be better.
                break
        rarest = min(failures, key=failures.__getitem__)
        edited = subject(fitted[rarest])
        fitted[rarest] = replace(
            fitted[rarest], damage=against.damage(edited).share, kl=against.kl(edited).value
        )
    points = (*map(_uniform, finalists), *fitted)
    best, reason = _best(points, recipe, tolerance)
    if points[best].kl_weight is None:
        uniform = directions[points[best].method][0]
        return uniform, StrengthsRecord(reason=reason, points=points, direction=fittest.digest)
    return fittest, StrengthsRecord(
        reason=reason, chosen=best, points=points, direction=fittest.digest
    )


def _good_enough(one: Finalist, one_reply: float) -> bool:
    return one.failures + one.damage <= one_reply and one.kl <= _NEGLIGIBLE_KL


def _best(points: Sequence[StrengthsPoint], recipe: Recipe, tolerance: float) -> tuple[int, str]:
    """Of the judged points that fail and damage as rarely as any, the one of lowest KL, and why."""
    judged = [
        index
        for index, point in enumerate(points)
        if point.damage is not None and (recipe.strengths == "auto" or point.kl_weight is not None)
    ]
    fewest = min(_bad(points[index]) for index in judged)
    best = min(
        (index for index in judged if _bad(points[index]) <= fewest + tolerance),
        key=lambda index: points[index].kl or 0.0,
    )
    taken = points[best]
    reason = (
        f"of {len(points)} points, those within {tolerance:.2f} of the fewest validation "
        f"replies that fail or are damaged ({fewest:.2f}); of these the lowest KL ({taken.kl:.4f}: "
        f"{taken.method}, layer {taken.layer})"
    )
    return best, reason


def _bad(point: StrengthsPoint) -> float:
    return (point.failures or 0.0) + (point.damage or 0.0)


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
        position=finalist.position,
        kl_weight=None,
        strengths={},
        failures=finalist.failures,
        damage=finalist.damage,
        kl=finalist.kl,
    )
