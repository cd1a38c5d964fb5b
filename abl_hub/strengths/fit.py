"""Strengths fitted by gradient through the runtime form: a handful of scalars, in seconds.

The loss weighs how often positive prompts still open with the behaviour (softplus of the log-odds)
against KL(base ‖ edited) over the first tokens of the base's own replies to negative prompts, and
takes a little for every strength that is used. Weighing them differently gives a front of edits:
the weight of KL grows until the behaviour comes back, then the gap where it does is halved.

Knows edits, a model and what it is shown; judges no reply: that is for whole replies to decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize
from torch.nn.functional import softplus

from abl_hub.directions.selection import log_odds
from abl_hub.edits.edit import Edit, Gains, factors
from abl_hub.errors import EditError
from abl_hub.model.batches import right_padded
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import bounded, divergence
from abl_hub.model.generate import Continuation
from abl_hub.model.stream import Projection, projecting
from abl_hub.progress import SILENT, Progress

STRONGEST = 1.5
_SPARSITY = 0.02
# Openings count until their log-odds are below −2.5, and hardly any further: what a refusal is
# pushed beyond that is paid for in KL and buys nothing.
_ENOUGH_LOG_ODDS, _SHARPNESS = 2.5, 2.0
_LEAP = 3.0
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long is fitted.

    Args:
        steps: evaluations of loss and gradient for the first point of the front; every direction
            gets a third of them.
        further: evaluations for each further point, from its neighbour.
        kl_weight: nats of KL against log-odds at the first point.
        leaps: most points with three times the weight of the last, or a third of it.
        gap: between the last weight without the behaviour and the first with it; a wider one is
            halved.
        positive: prompts that are fitted on.
        negative: replies that are fitted on; too few, and the KL of other replies is higher.
        asked: training prompts and replies that tell where a point of the front lies.
        opening: share of openings with the behaviour above which it has come back.
    """

    steps: int = 14
    further: int = 5
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
class Fitted:
    """One point of the front.

    Args:
        strengths: group → strength, 0 to 1.5.
        kl_weight: how KL was weighed.
        opening: share of training prompts whose reply still opens with the behaviour.
        kl: over the base's replies to training prompts, nats a token.
    """

    strengths: dict[str, float]
    kl_weight: float
    opening: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class Front:
    """What was fitted.

    Args:
        chosen: which of the edits suits fitted strengths best.
        points: by rising weight of KL.
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
    with torch.no_grad():
        base = [bounded(table).half().cpu() for table in _all_replies(chat, lesson.negative)]
    courses = [_Course(chat, edit, names, gains, lesson, base, budget, seed) for edit in edits]
    third = math.ceil(budget.steps / 3)
    with progress.stage("Fitting strengths") as advance:
        losses = []
        for course in courses:
            losses.append(course.descend(budget.kl_weight, third))
            advance(third)
        chosen = min(range(len(edits)), key=losses.__getitem__)
        course = courses[chosen]
        course.descend(budget.kl_weight, budget.steps - third)
        advance(budget.steps - third)
        points = [course.point(budget.kl_weight)]
        while (weight := _next_weight(points, budget)) is not None:
            nearest = min(points, key=lambda one: abs(math.log(one.kl_weight / weight)))
            course.start(nearest.strengths)
            course.descend(weight, budget.further)
            advance(budget.further)
            point = course.point(weight)
            if point.strengths == nearest.strengths:
                break  # At their bounds: no weight moves them any more.
            points.append(point)
    return Front(chosen=chosen, points=tuple(sorted(points, key=lambda one: one.kl_weight)))


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


class _Course:
    """One edit made ready for many steps, and how far its strengths have come."""

    strengths: list[float]

    def __init__(
        self,
        chat: ChatModel,
        edit: Edit,
        names: Sequence[str],
        gains: Gains,
        lesson: Lesson,
        base: Sequence[torch.Tensor],
        budget: Budget,
        seed: int,
    ) -> None:
        self.chat, self.lesson, self.base, self.asked = chat, lesson, base, slice(budget.asked)
        # The same for every edit, so that losses compare, and at every step: what is left of the
        # noise of a sample is no obstacle to a method that expects a smooth loss.
        draw = torch.Generator().manual_seed(seed)
        self.positive = _drawn(len(lesson.positive), budget.positive, draw)
        self.negative = _drawn(len(lesson.negative), budget.negative, draw)
        used = [name for name, s in zip(names, edit.strengths, strict=True) if s != 0.0]
        self.groups = tuple(dict.fromkeys(used))
        self.parts = []
        for writer, name, strength in zip(edit.writers, names, edit.strengths, strict=True):
            if strength != 0.0:
                change = factors(edit, writer, strength, gains)
                read, remove = (x.float().to(chat.device) for x in (change.read, change.remove))
                self.parts.append((writer, self.groups.index(name), read, remove))
        self.start(None)

    def start(self, strengths: Mapping[str, float] | None) -> None:
        """Go on from these strengths; None is one for all."""
        self.strengths = [1.0 if strengths is None else strengths[group] for group in self.groups]

    def descend(self, weight: float, steps: int) -> float:
        """Minimise the loss by L-BFGS-B from where the strengths are, in about `steps` steps."""
        if steps == 0:
            return math.inf
        found = minimize(
            self._loss_and_gradient,
            self.strengths,
            args=(weight,),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, STRONGEST)] * len(self.groups),
            options={"maxfun": steps, "maxcor": len(self.groups)},
        )
        self.strengths = found.x.tolist()
        return float(found.fun)

    @torch.no_grad()
    def point(self, weight: float) -> Fitted:
        """Where the strengths are now."""
        with projecting(self.chat.model, self._projections(torch.tensor(self.strengths))):
            shown = _openings(self.chat, self.lesson.positive[self.asked])
            replies = list(_all_replies(self.chat, self.lesson.negative[self.asked]))
        opening = (log_odds(shown, self.lesson.behaviour_tokens) > 0).float().mean()
        return Fitted(
            strengths=dict(zip(self.groups, self.strengths, strict=True)),
            kl_weight=weight,
            opening=float(opening),
            kl=float(_mean_kl(self.base[self.asked], replies)),
        )

    def _loss_and_gradient(self, values: Any, weight: float) -> tuple[float, Any]:
        strengths = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        with projecting(self.chat.model, self._projections(strengths)):
            shown = _openings(self.chat, [self.lesson.positive[i] for i in self.positive])
            replies = _over_replies(self.chat, [self.lesson.negative[i] for i in self.negative])
        odds = log_odds(shown, self.lesson.behaviour_tokens) + _ENOUGH_LOG_ODDS
        loss = softplus(odds, beta=_SHARPNESS).mean().float().cpu()
        loss = loss + weight * _mean_kl([self.base[i] for i in self.negative], replies).cpu()
        loss = loss + _SPARSITY * strengths.sum()
        if not bool(torch.isfinite(loss)):
            raise EditError(
                "The strengths cannot be fitted",
                why="the loss is not finite",
                next_step="Try --dtype float32, or --strengths one",
            )
        (gradient,) = torch.autograd.grad(loss, strengths)
        return float(loss.detach()), gradient.double().numpy()

    def _projections(self, strengths: torch.Tensor) -> dict[str, tuple[int, Projection]]:
        return {
            writer.parameter: (
                writer.axis,
                Projection(read=read, remove=strengths[group].to(remove.device) * remove),
            )
            for writer, group, read, remove in self.parts
        }


def _all_replies(chat: ChatModel, replies: Sequence[Continuation]) -> Iterator[torch.Tensor]:
    """`_over_replies`, a few at a time."""
    for first in range(0, len(replies), _ROWS):
        yield from _over_replies(chat, replies[first : first + _ROWS])


def _openings(chat: ChatModel, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probabilities of the first token of replies, (prompts, vocabulary)."""
    logits, start = _logits(chat, prompts, [1] * len(prompts))
    last = torch.tensor([len(tokens) - 1 - start for tokens in prompts], device=logits.device)
    return logits[torch.arange(len(prompts), device=logits.device), last].log_softmax(-1)


def _over_replies(chat: ChatModel, replies: Sequence[Continuation]) -> list[torch.Tensor]:
    """Log-probabilities of each reply's tokens, (judged, vocabulary) each."""
    logits, start = _logits(
        chat, [one.tokens for one in replies], [one.judged + 1 for one in replies]
    )
    ends = [len(one.tokens) - 1 - start for one in replies]
    return [
        logits[row, end - one.judged : end].log_softmax(-1)
        for row, (one, end) in enumerate(zip(replies, ends, strict=True))
    ]


def _logits(
    chat: ChatModel, sequences: Sequence[Sequence[int]], needed: Sequence[int]
) -> tuple[torch.Tensor, int]:
    """Logits (rows, tokens, vocabulary) from the first place where they are needed."""
    tokens = right_padded(sequences, device=chat.device)
    start = min(len(one) - last for one, last in zip(sequences, needed, strict=True))
    kept = tokens.shape[1] - start
    logits = chat.model(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits[:, -kept:]
    return logits.float(), start


def _mean_kl(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean KL(before ‖ after) over replies of log-probabilities (judged, vocabulary), nats."""
    return torch.stack(
        [divergence(old.to(new), new).mean() for old, new in zip(before, after, strict=True)]
    ).mean()


def _drawn(count: int, wanted: int, draw: torch.Generator) -> list[int]:
    chosen: list[int] = torch.randperm(count, generator=draw)[:wanted].tolist()
    return chosen
