"""Candidates judged on growing parts of the validation prompts, and dropped as soon as it is clear.

Every candidate begins with a few prompts. It is out when a one-sided 99% bound says that it misses
a threshold, or that its bypass score is above the leader's (paired, on the same prompts). The
bounds are of the mean over all validation prompts, which are finitely many: they close as the
prompts run out. The winner has been judged on all of them, with the numbers of the plain loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from abl_hub.directions.jury import Jury, Scores

# Student's t, one-sided 99%, by degrees of freedom; the normal quantile beyond.
_T99 = {1: 31.82, 2: 6.965, 3: 4.541, 4: 3.747, 5: 3.365, 7: 2.998, 10: 2.764, 15: 2.602}
_Z99 = 2.5

BEATEN = "beaten"
MISSED = "missed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
    """Above `kl` or below `induce` a candidate is out."""

    kl: float
    induce: float

    def met_by(self, scores: Scores) -> bool:
        """Whether the means so far meet them."""
        return mean(scores.kl) <= self.kl and mean(scores.induce) >= self.induce


def race(
    jury: Jury,
    field_: Sequence[Scores],
    thresholds: Thresholds,
    *,
    on_round: Callable[[int], None] = lambda _number: None,
) -> None:
    """Judge all of `field_` round by round; most are out after a few prompts.

    Who is in at the end has been judged on all prompts (on induce only where there is a threshold
    for it), and no other would beat it. Scores of an earlier race are used again.
    """
    for scores in field_:
        scores.out = scores.beaten_by = None
    while True:
        for number in range(jury.rounds):
            _play(jury, field_, number, thresholds)
            on_round(number)
        if not _wronged(field_):
            return


def _wronged(field_: Sequence[Scores]) -> list[Scores]:
    """Those that were beaten by one which has missed a threshold since."""
    return [
        scores
        for scores in field_
        if scores.out == BEATEN and scores.beaten_by is not None and scores.beaten_by.out == MISSED
    ]


def finish(jury: Jury, scores: Scores) -> None:
    """Judge one on all the prompts that it has not seen."""
    judge_additions(jury, [scores], jury.rounds - 1)
    for name in ("kl", "bypass"):
        _catch_up(jury, scores, name, jury.rounds - 1)


def _play(jury: Jury, field_: Sequence[Scores], number: int, thresholds: Thresholds) -> None:
    """One round: the cheapest score first, KL only of those that may lead."""
    for scores in _wronged(field_):
        scores.out = scores.beaten_by = None
    if thresholds.induce > -math.inf:
        judge_additions(jury, _inside(field_), number)
        for scores in _inside(field_):
            if not scores.finite or _at_most(jury, scores) < thresholds.induce:
                scores.out = MISSED
    for scores in _inside(field_):
        _catch_up(jury, scores, "bypass", number)
        if not scores.finite:
            scores.out = MISSED
    order = iter(sorted(_inside(field_), key=lambda scores: mean(scores.bypass)))
    leader = next(
        (
            scores
            for scores in order
            if _within_kl(jury, scores, number, thresholds) and thresholds.met_by(scores)
        ),
        None,
    )
    if leader is None:
        return
    total = jury.before("bypass", jury.rounds)
    for scores in order:
        apart = [one - other for one, other in zip(scores.bypass, leader.bypass, strict=False)]
        # In the end who is behind the leader is beaten, those who are level with it too.
        if len(apart) == total or mean(apart) - _half(apart, total) > 0:
            scores.out, scores.beaten_by = BEATEN, leader


def _within_kl(jury: Jury, scores: Scores, number: int, thresholds: Thresholds) -> bool:
    """Judge KL up to this round; out if it is clearly too large, or a number is not finite."""
    _catch_up(jury, scores, "kl", number)
    if not scores.finite:
        scores.out = MISSED
        return False
    total = jury.before("kl", jury.rounds)
    # KL is never negative, so that what has been seen is a bound by itself.
    certain = math.fsum(scores.kl) / total
    if max(mean(scores.kl) - _half(scores.kl, total), certain) > thresholds.kl:
        scores.out = MISSED
    return scores.out is None


def _at_most(jury: Jury, scores: Scores) -> float:
    """Upper bound of the mean induce score.

    The unedited model's score is known for every prompt, so only what the addition changes is
    estimated (the difference estimator of survey sampling): it varies far less between prompts.
    """
    changes = [one - base for one, base in zip(scores.induce, jury.unedited, strict=False)]
    return mean(jury.unedited) + mean(changes) + _half(changes, len(jury.unedited))


def _catch_up(jury: Jury, scores: Scores, name: str, number: int) -> None:
    """Judge one score on every round up to `number` that it has not seen."""
    seen: list[float] = getattr(scores, name)
    for earlier in range(number + 1):
        if len(seen) <= jury.before(name, earlier):
            seen += getattr(jury, name)(scores.proposal, earlier)


def judge_additions(jury: Jury, field_: Sequence[Scores], number: int) -> None:
    """Judge additions on every round up to `number` that they have not seen, a layer at a time."""
    for earlier in range(number + 1):
        by_layer: dict[int, list[Scores]] = {}
        for scores in field_:
            if len(scores.induce) <= jury.before("induce", earlier):
                by_layer.setdefault(scores.proposal.layer, []).append(scores)
        for layer, together in by_layer.items():
            vectors = torch.stack([scores.proposal.addition for scores in together])
            for scores, found in zip(together, jury.induce(layer, vectors, earlier), strict=True):
                scores.induce += found


def _inside(field_: Sequence[Scores]) -> list[Scores]:
    return [scores for scores in field_ if scores.out is None]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one number."""
    return math.fsum(values) / len(values)


def _half(values: Sequence[float], total: int) -> float:
    """Half of the interval around the mean of `total` prompts, of which `values` are known."""
    count = len(values)
    if count == total:
        return 0.0
    if count < 2:
        return math.inf
    centre = mean(values)
    variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
    known = [freedom for freedom in _T99 if freedom <= count - 1]
    quantile = _T99[max(known)] if count - 1 <= max(_T99) else _Z99
    return quantile * math.sqrt(variance / count * (1 - count / total))
