"""Strengths fitted by gradient through the runtime form: a handful of scalars, in seconds.

The loss weighs how often positive prompts still open with the behaviour (softplus of the log-odds)
against KL(base ‖ edited) over the first tokens of the base's own replies to negative prompts, and
takes a little for every strength that is used. Weighing them differently gives a front of edits.

Knows an edit, a model and what it is shown; judges no reply: that is for whole replies to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from abl_hub.directions.selection import log_odds
from abl_hub.edits.edit import Edit, Gains, factors
from abl_hub.errors import EditError
from abl_hub.model.batches import right_padded
from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import Continuation
from abl_hub.model.stream import Projection, projecting
from abl_hub.progress import SILENT, Progress

STRONGEST = 1.5
_ENOUGH_LOG_ODDS = 5.0
_SPARSITY = 0.02
_RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long is fitted.

    Args:
        steps: of Adam for the first point of the front.
        further: steps for each further point, from the one before.
        kl_weights: nats of KL against log-odds; one point of the front each, in this order.
        positive: prompts a step.
        negative: replies a step.
    """

    steps: int = 10
    further: int = 6
    kl_weights: tuple[float, ...] = (300.0, 1000.0, 3000.0)
    positive: int = 32
    negative: int = 16

    @property
    def total(self) -> int:
        return self.steps + self.further * (len(self.kl_weights) - 1)


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
        loss: where the fit ended, on its last prompts.
    """

    strengths: dict[str, float]
    kl_weight: float
    loss: float


def fit(
    chat: ChatModel,
    edit: Edit,
    names: Sequence[str],
    gains: Gains,
    lesson: Lesson,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Fitted]:
    """Fit one strength a group of writers; one result for each of the budget's KL weights.

    Args:
        edit: what is removed at strength 1; writers that it leaves at 0 stay at 0.
        names: the group of each of the edit's writers.

    Raises:
        EditError: the loss is not finite.
    """
    budget = budget or Budget()
    course = _Course(chat, edit, names, gains, lesson)
    draw = torch.Generator().manual_seed(seed)
    strengths = torch.ones(len(course.groups), device=chat.device, requires_grad=True)
    found = []
    with progress.stage("Fitting strengths", budget.total) as advance:
        for number, weight in enumerate(budget.kl_weights):
            # A fresh one for every point: the old momentum points to the old compromise.
            adam = torch.optim.Adam([strengths], lr=_RATE)
            loss = torch.zeros(())
            for _ in range(budget.further if number else budget.steps):
                adam.zero_grad()
                loss = course.loss(strengths, weight, budget, draw)
                if not bool(torch.isfinite(loss)):
                    raise EditError(
                        "The strengths cannot be fitted",
                        why="the loss is not finite",
                        next_step="Try --dtype float32, or --strengths one",
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                with torch.no_grad():
                    strengths.clamp_(0.0, STRONGEST)
                advance(1)
            values = dict(zip(course.groups, strengths.detach().tolist(), strict=True))
            found.append(Fitted(strengths=values, kl_weight=weight, loss=float(loss.detach())))
    return found


class _Course:
    """Model, edit and lesson made ready for many steps."""

    def __init__(
        self,
        chat: ChatModel,
        edit: Edit,
        names: Sequence[str],
        gains: Gains,
        lesson: Lesson,
    ) -> None:
        self.chat = chat
        self.lesson = lesson
        used = [name for name, s in zip(names, edit.strengths, strict=True) if s != 0.0]
        self.groups = tuple(dict.fromkeys(used))
        self.parts = []
        for writer, name, strength in zip(edit.writers, names, edit.strengths, strict=True):
            if strength != 0.0:
                change = factors(edit, writer, strength, gains)
                read, remove = (x.float().to(chat.device) for x in (change.read, change.remove))
                self.parts.append((writer, self.groups.index(name), read, remove))
        self.base = self._base()

    def _base(self) -> list[torch.Tensor]:
        """The unedited model's log-probabilities over its own replies, (judged, vocabulary)."""
        with torch.no_grad():
            count, rows = len(self.lesson.negative), 16
            return [
                table.half().cpu()
                for first in range(0, count, rows)
                for table in self._over_replies(range(first, min(first + rows, count)))
            ]

    def loss(
        self, strengths: torch.Tensor, weight: float, budget: Budget, draw: torch.Generator
    ) -> torch.Tensor:
        """The loss on a random part of the lesson."""
        positive = _drawn(len(self.lesson.positive), budget.positive, draw)
        negative = _drawn(len(self.lesson.negative), budget.negative, draw)
        projections = {
            writer.parameter: (
                writer.axis,
                Projection(read=read, remove=strengths[group] * remove),
            )
            for writer, group, read, remove in self.parts
        }
        with projecting(self.chat.model, projections):
            shown = self._openings(positive)
            apart = [
                _kl(self.base[index].to(after), after)
                for index, after in zip(negative, self._over_replies(negative), strict=True)
            ]
        showing = softplus(log_odds(shown, self.lesson.behaviour_tokens) + _ENOUGH_LOG_ODDS)
        cost = weight * torch.stack(apart).mean() + _SPARSITY * strengths.abs().sum()
        return showing.mean().float() + cost

    def _openings(self, indices: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the first token of replies, (prompts, vocabulary)."""
        chosen = [self.lesson.positive[i] for i in indices]
        logits, start = self._logits(chosen, [1] * len(chosen))
        last = torch.tensor([len(tokens) - 1 - start for tokens in chosen], device=logits.device)
        return logits[torch.arange(len(chosen), device=logits.device), last].log_softmax(-1)

    def _over_replies(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Log-probabilities of each reply's tokens, (judged, vocabulary) each."""
        chosen = [self.lesson.negative[i] for i in indices]
        logits, start = self._logits(
            [one.tokens for one in chosen], [one.judged + 1 for one in chosen]
        )
        ends = [len(one.tokens) - 1 - start for one in chosen]
        return [
            logits[row, end - one.judged : end].log_softmax(-1)
            for row, (one, end) in enumerate(zip(chosen, ends, strict=True))
        ]

    def _logits(
        self, sequences: Sequence[Sequence[int]], needed: Sequence[int]
    ) -> tuple[torch.Tensor, int]:
        """Logits (rows, tokens, vocabulary) from the first place where they are needed."""
        tokens = right_padded(sequences, device=self.chat.device)
        start = min(len(one) - last for one, last in zip(sequences, needed, strict=True))
        kept = tokens.shape[1] - start
        logits = self.chat.model(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits[
            :, -kept:
        ]
        return logits.float(), start


def _kl(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return (before.exp() * (before - after)).sum(-1).mean()


def _drawn(count: int, wanted: int, draw: torch.Generator) -> list[int]:
    chosen: list[int] = torch.randperm(count, generator=draw)[:wanted].tolist()
    return chosen
