"""How well a number tells two sides apart: accuracy at a threshold, and the area under the curve.

Knows scores; not what they are (here: projections on a direction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abl_hub.evaluation.intervals import Estimate, proportion

_Z = 1.959963984540054  # two-sided 95%


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A score as a detector of the behaviour, on held-out prompts.

    Args:
        accuracy: at the threshold half way between the training means, Wilson interval.
        auc: probability that a positive prompt scores higher than a negative one (Hanley & McNeil
            1982, with their 95% interval); ties count half.
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
    pairs = len(positive) * len(negative)
    area = wins / pairs
    shown, not_shown = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area)
        + (len(positive) - 1) * (shown - area**2)
        + (len(negative) - 1) * (not_shown - area**2)
    ) / pairs
    half = _Z * math.sqrt(max(0.0, variance))
    return Estimate(
        value=area,
        low=max(0.0, area - half),
        high=min(1.0, area + half),
        count=len(positive) + len(negative),
    )
