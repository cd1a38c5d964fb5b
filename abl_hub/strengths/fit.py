"""Strengths fitted by gradient through the runtime form: a handful of scalars, in seconds.

A few steps from every edit tell which one suits fitted strengths best. Weighing KL differently then
gives its front: the weight grows until the behaviour comes back, and the gap where it does is
halved.

Knows edits, a model and what it is shown; judges no reply: that is for whole replies to decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from abl_hub.edits.edit import Edit, Gains
from abl_hub.model.chat import ChatModel
from abl_hub.model.teacher_forcing import Continuation, narrow_tables
from abl_hub.progress import SILENT, Progress
from abl_hub.strengths.course import ROWS, Course, Fitted, Shown, openings

# Two halvings of it are just within `Budget.gap`.
_LEAP = 3.8


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long is fitted.

    Args:
        steps: evaluations of loss and gradient for the first point of the front. A third of them
            goes to every direction, on half of what is shown, to tell which one is best.
        further: evaluations for each further point, from its neighbour.
        kl_weight: nats of KL against log-odds at the first point.
        leaps: most points with the last weight times `_LEAP`, or divided by it.
        gap: between the last weight without the behaviour and the first with it; a wider one is
            halved.
        positive: prompts that are fitted on.
        negative: replies that are fitted on; too few, and the KL of other replies is higher.
        asked: training prompts that tell whether the behaviour has come back.
        opening: share of their replies that open with it, above which it has.
    """

    steps: int = 9
    further: int = 4
    kl_weight: float = 300.0
    leaps: int = 4
    gap: float = 1.4
    positive: int = 16
    negative: int = 24
    asked: int = 32
    opening: float = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What the strengths are fitted on: training prompts, never those that judge them.

    Args:
        positive: token ids of prompts that show the behaviour.
        negative: prompts that do not, followed by the base's own replies.
        behaviour_tokens: first tokens of replies that show it.
    """

    positive: Sequence[Sequence[int]]
    negative: Sequence[Continuation]
    behaviour_tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Front:
    """What was fitted.

    Args:
        chosen: which of the edits suits fitted strengths best.
        points: by falling KL; none is worse than another in all that was weighed.
    """

    chosen: int
    points: tuple[Fitted, ...]


def fit(
    chat: ChatModel,
    edits: Sequence[Edit],
    names: Sequence[str],
    gains: Gains,
    lesson: Lesson,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Front:
    """Fit one strength a group of writers, and choose the edit that they suit best.

    Args:
        edits: of the same writers along other directions; what each removes at strength 1.
            Writers that they leave at 0 stay at 0.
        names: the group of each of the edits' writers.

    Raises:
        EditError: the loss is not finite.
    """
    budget = budget or Budget()
    shown = _drawn(chat, lesson, budget, seed)
    asked = openings(lesson.positive[: budget.asked])
    third = math.ceil(budget.steps / 3)
    with progress.stage("Fitting strengths") as advance:
        courses = [Course(chat, edit, names, gains, shown.half()) for edit in edits]
        for course in courses:
            course.descend(budget.kl_weight, third)
            advance(third)
        losses = [course.least(budget.kl_weight) for course in courses]
        chosen = min(range(len(edits)), key=losses.__getitem__)
        start = courses[chosen].best(budget.kl_weight)
        course = Course(chat, edits[chosen], names, gains, shown, start)
        course.descend(budget.kl_weight, budget.steps - third)
        advance(budget.steps - third)
        points = [course.point(budget.kl_weight, asked)]
        while (weight := _next_weight(points, budget)) is not None:
            course.descend(weight, budget.further)
            advance(budget.further)
            points.append(course.point(weight, asked))
        # What is best for one weight may have been seen on the way to a later one.
        points += [course.point(one.kl_weight, asked) for one in points]
    return Front(chosen=chosen, points=course.front(points))


def _next_weight(points: Sequence[Fitted], budget: Budget) -> float | None:
    """Where the front is to be looked at next; None when it is known well enough."""
    gone = [one.kl_weight for one in points if one.opening <= budget.opening]
    back = [one.kl_weight for one in points if one.opening > budget.opening]
    if gone and back:
        gap = min(back) / max(gone)
        return max(gone) * math.sqrt(gap) if gap > budget.gap else None
    if len(points) > budget.leaps:
        return None
    return _LEAP * max(gone) if gone else min(back) / _LEAP


def _drawn(chat: ChatModel, lesson: Lesson, budget: Budget, seed: int) -> Shown:
    """Draw what the steps are shown, and ask the base for what it says of it."""
    draw = torch.Generator().manual_seed(seed)
    positive = torch.randperm(len(lesson.positive), generator=draw)[: budget.positive].tolist()
    negative = torch.randperm(len(lesson.negative), generator=draw)[: budget.negative].tolist()
    replies = [lesson.negative[index] for index in negative]
    return Shown(
        positive=openings([lesson.positive[index] for index in positive]),
        negative=replies,
        before=narrow_tables(chat, replies, rows=ROWS),
        behaviour_tokens=lesson.behaviour_tokens,
    )
