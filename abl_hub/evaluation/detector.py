"""How well a number tells two sides apart: accuracy at a threshold, and the area under the curve.

Knows scores; not what they are (here: projections on a direction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abl_hub.evaluation.intervals import Estimate, proportion

_Z = 1.959963984540054  # two-sided 95%
_HALVINGS = 60


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A score as a detector of the behaviour, on held-out prompts.

    Args:
        accuracy: at the threshold half way between the training means, Wilson interval.
        auc: probability that a positive prompt scores higher than a negative one, with its 95%
            interval (Newcombe 2006, method 5); ties count half.
    """

    accuracy: Estimate
    auc: Estimate


def threshold(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Half way between the two means."""
    return (math.fsum(positive) / len(positive) + math.fsum(negative) / len(negative)) / 2


def detect(positive: Sequence[float], negative: Sequence[float], at: float) -> Detector:
    """Judge held-out scores against the threshold `at`, which was made of others."""
    hits = sum(score > at for score in positive) + sum(score <= at for score in negative)
    return Detector(
        accuracy=proportion(hits, len(positive) + len(negative)), auc=auc(positive, negative)
    )


def auc(positive: Sequence[float], negative: Sequence[float]) -> Estimate:
    """Area under the receiver operating characteristic, from ranks.

    Its interval holds every area from which this one is no further than chance allows: Hanley &
    McNeil's (1982) variance at that area, not at the one found, so that two sides that are apart
    in a few prompts are not apart for certain (Newcombe 2006, Statistics in Medicine 25, part 2).

    Raises:
        ValueError: a side is empty.
    """
    if not positive or not negative:
        raise ValueError("the area under the curve needs scores of both sides")
    wins = sum(
        1.0 if one > other else 0.5 if one == other else 0.0
        for one in positive
        for other in negative
    )
    sizes = len(positive), len(negative)
    area = wins / math.prod(sizes)
    return Estimate(
        value=area,
        low=_lower_end(area, sizes),
        high=1.0 - _lower_end(1.0 - area, sizes),  # the sides change places
        count=sum(sizes),
    )


def _lower_end(area: float, sizes: tuple[int, int]) -> float:
    """The smallest area that is not too far below `area`, by bisection."""
    low, high = 0.0, area
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if area - middle > _Z * math.sqrt(_variance(middle, sizes)):
            low = middle
        else:
            high = middle
    return low


def _variance(area: float, sizes: tuple[int, int]) -> float:
    others = sum(sizes) / 2 - 1
    apart = 1 + others * (1 - area) / (2 - area) + others * area / (1 + area)
    return area * (1 - area) * apart / math.prod(sizes)
