"""One edit's strengths, step by step: what they do to the behaviour and to KL, and their gradients.

The loss weighs how often positive prompts still open with the behaviour (softplus of the log-odds)
against KL(base ‖ edited) over the first tokens of the base's own replies to negative prompts, and
takes a little for every strength that is used. None of the three depends on how they are weighed:
what was seen at one weight is known at every other.

Knows one edit and what it is shown; not which weights are worth a look, nor other edits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import minimize
from torch.nn.functional import softplus

from abl_hub.directions.selection import log_odds
from abl_hub.edits.edit import Edit, Gains, factors
from abl_hub.errors import EditError
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import divergence
from abl_hub.model.stream import Projection, projecting
from abl_hub.model.teacher_forcing import Continuation, portions, summed_means, together

STRONGEST = 1.5
_SPARSITY = 0.02
# Openings count until their log-odds are below −2.5, and hardly any further: what a refusal is
# pushed beyond that is paid for in KL and buys nothing.
_ENOUGH_LOG_ODDS, _SHARPNESS = 2.5, 2.0
# What strengths are divided by. L-BFGS-B's first step, before anything is known of how the loss
# curves, is the gradient: of strengths, it is the square of this as long. A power of two, so that
# strengths are the same whatever they were divided by.
_STRIDE = 0.5
ROWS = 32
"""Most prompts or replies a pass; fewer where the vocabulary is large."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One point of the front.

    Args:
        strengths: group → strength, 0 to 1.5.
        kl_weight: how KL was weighed.
        opening: share of training prompts whose reply still opens with the behaviour.
        kl: over the base's replies that were fitted on, nats a token.
    """

    strengths: dict[str, float]
    kl_weight: float
    opening: float
    kl: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Terms:
    """What the loss is made of at some strengths, and the gradients (groups,), float64."""

    used: float
    behaviour: float
    behaviour_gradient: Any
    kl: float
    kl_gradient: Any

    def loss(self, weight: float) -> float:
        return self.behaviour + weight * self.kl + _SPARSITY * self.used

    def beats(self, other: _Terms) -> bool:
        """Whether it is better in KL or in all else, and worse in neither."""
        mine, theirs = ((one.loss(0.0), one.kl) for one in (self, other))
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    def gradient(self, weight: float) -> Any:
        return self.behaviour_gradient + weight * self.kl_gradient + _SPARSITY


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What every step is shown: the same, so that losses compare and are smooth.

    Args:
        positive: prompts, of whose replies the first token is judged.
        negative: prompts with the base's replies.
        before: the base's log-probabilities of each reply, (judged, vocabulary), float16.
    """

    positive: Sequence[Continuation]
    negative: Sequence[Continuation]
    before: Sequence[torch.Tensor]
    behaviour_tokens: tuple[int, ...]

    def half(self) -> Shown:
        return replace(
            self, positive=self.positive[::2], negative=self.negative[::2], before=self.before[::2]
        )


class Course:
    """One edit made ready for many steps, and all that was seen on the way."""

    def __init__(
        self,
        chat: ChatModel,
        edit: Edit,
        names: Sequence[str],
        gains: Gains,
        shown: Shown,
        start: tuple[float, ...] | None = None,
    ) -> None:
        self.chat, self.shown = chat, shown
        used = [name for name, s in zip(names, edit.strengths, strict=True) if s != 0.0]
        self.groups = tuple(dict.fromkeys(used))
        self.parts, self.untouched = [], set()
        for writer, name, strength in zip(edit.writers, names, edit.strengths, strict=True):
            if strength != 0.0:
                change = factors(edit, writer, strength, gains)
                read, remove = (x.float().to(chat.device) for x in (change.read, change.remove))
                self.parts.append((writer, self.groups.index(name), read, remove))
            else:
                self.untouched.add(writer.parameter)
        self.seen: dict[tuple[float, ...], _Terms] = {}
        self.opening: dict[tuple[float, ...], float] = {}
        self._look(start or (_first(edit),) * len(self.groups))

    def descend(self, weight: float, steps: int) -> None:
        """Lessen the loss by L-BFGS-B from the best strengths seen, in about `steps` looks."""
        if steps == 0:
            return
        minimize(
            lambda place: self._loss_and_gradient(place, weight),
            [strength / _STRIDE for strength in self.best(weight)],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, STRONGEST / _STRIDE)] * len(self.groups),
            options={"maxfun": steps, "maxcor": len(self.groups)},
        )

    def best(self, weight: float) -> tuple[float, ...]:
        """Of all strengths seen, those of least loss."""
        return min(self.seen, key=lambda strengths: self.seen[strengths].loss(weight))

    def least(self, weight: float) -> float:
        """Their loss."""
        return self.seen[self.best(weight)].loss(weight)

    def front(self, points: Sequence[Fitted]) -> tuple[Fitted, ...]:
        """By falling KL, those of `points` than which none is better in both that are weighed."""
        found = {tuple(one.strengths.values()): one for one in points}
        best = [
            point
            for strengths, point in found.items()
            if not any(self.seen[other].beats(self.seen[strengths]) for other in found)
        ]
        return tuple(sorted(best, key=lambda one: -one.kl))

    @torch.no_grad()
    def point(self, weight: float, asked: Sequence[Continuation]) -> Fitted:
        """The best strengths, and whether the behaviour has come back in replies to `asked`."""
        strengths = self.best(weight)
        if strengths not in self.opening:
            shows = 0
            with self._active(torch.tensor(strengths)):
                for chosen in portions(self.chat, asked, rows=ROWS):
                    shows += int((self._odds([asked[index] for index in chosen]) > 0).sum())
            self.opening[strengths] = shows / len(asked)
        return Fitted(
            strengths=dict(zip(self.groups, strengths, strict=True)),
            kl_weight=weight,
            opening=self.opening[strengths],
            kl=self.seen[strengths].kl,
        )

    def _loss_and_gradient(self, place: Any, weight: float) -> tuple[float, Any]:
        strengths = tuple((place * _STRIDE).tolist())
        self._look(strengths)
        terms = self.seen[strengths]
        return terms.loss(weight), terms.gradient(weight) * _STRIDE

    def _look(self, strengths: tuple[float, ...]) -> None:
        """See what these strengths do, if that is not known: no term depends on the weight."""
        if strengths in self.seen:
            return
        behaviour, behaviour_gradient = self._differentiated(
            self._behaviour, self.shown.positive, strengths
        )
        kl, kl_gradient = self._differentiated(self._kl, self.shown.negative, strengths)
        if not math.isfinite(behaviour + kl):
            raise EditError(
                "The strengths cannot be fitted",
                why="the loss is not finite",
                next_step="Try --dtype float32, or --strengths one",
            )
        self.seen[strengths] = _Terms(
            used=sum(strengths),
            behaviour=behaviour,
            behaviour_gradient=behaviour_gradient,
            kl=kl,
            kl_gradient=kl_gradient,
        )

    def _differentiated(
        self,
        term: Callable[[Sequence[int]], torch.Tensor],
        shown: Sequence[Continuation],
        strengths: tuple[float, ...],
    ) -> tuple[float, Any]:
        """Value and gradient of one term, batch by batch of what is shown.

        What one batch needs in memory is gone before the next.
        """
        value, gradient = 0.0, torch.zeros(len(strengths), dtype=torch.float64)
        for chosen in portions(self.chat, shown, rows=ROWS):
            at = torch.tensor(strengths, requires_grad=True)
            with self._active(at):
                found = term(chosen)
            gradient += torch.autograd.grad(found, at)[0].double()
            value += float(found.detach())
        return value, gradient.numpy()

    def _behaviour(self, chosen: Sequence[int]) -> torch.Tensor:
        """What the prompts `chosen` add to the mean over all."""
        enough = self._odds([self.shown.positive[index] for index in chosen]) + _ENOUGH_LOG_ODDS
        return softplus(enough, beta=_SHARPNESS).sum() / len(self.shown.positive)

    def _odds(self, prompts: Sequence[Continuation]) -> torch.Tensor:
        """Log-odds that replies open with the behaviour, (prompts,)."""
        return log_odds(together(self.chat, prompts), self.shown.behaviour_tokens)

    def _kl(self, chosen: Sequence[int]) -> torch.Tensor:
        """What the replies `chosen` add to the mean KL(base ‖ edited), nats a token."""
        replies = [self.shown.negative[index] for index in chosen]
        after = together(self.chat, replies)
        before = torch.cat([self.shown.before[index] for index in chosen]).to(after)
        return summed_means(divergence(before, after), replies) / len(self.shown.negative)

    def _active(self, strengths: torch.Tensor) -> AbstractContextManager[None]:
        """The model with strengths (groups,), which gradients reach."""
        projections = {
            writer.parameter: (
                writer.axis,
                Projection(read=read, remove=strengths[group].to(remove.device) * remove),
            )
            for writer, group, read, remove in self.parts
        }
        return projecting(self.chat.model, projections, untouched=self.untouched)


def _first(edit: Edit) -> float:
    """Strength at which an edit subtracts no more than it reads: 1, unless it is oblique.

    Oblique ones that subtract ten times as much may break every reply at 1, and a few steps from
    there do not lead far.
    """
    return 1.0 if edit.along is None else 1.0 / float(torch.linalg.matrix_norm(edit.along, 2))


def openings(prompts: Sequence[Sequence[int]]) -> list[Continuation]:
    """`prompts`, of whose replies the first token is judged, whichever it is."""
    return [Continuation(tokens=(*prompt, prompt[-1]), judged=1) for prompt in prompts]
