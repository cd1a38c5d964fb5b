"""Estimates with their intervals. Knows numbers; not what they measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

_Z = 1.959963984540054  # two-sided 95%
# Covers with 95% the mean of a normal distribution of which one value is known and nothing else, as
# a multiple of that value (Wall, Boen & Tweedie 2001, The American Statistician 55).
_OF_ONE = 9.68


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured value with its 95% interval.

    Args:
        value: the estimate.
        low: lower end.
        high: upper end.
        count: observations.
    """

    value: float
    low: float
    high: float
    count: int


def proportion(hits: int, count: int) -> Estimate:
    """A rate with its Wilson score interval (Wilson 1927): honest at 0, at 1 and for few."""
    if not 0 <= hits <= count or count == 0:
        raise ValueError(f"{hits} of {count} is no proportion")
    share = hits / count
    scale = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / scale
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / scale
    # At the ends the bound is exact; rounding must not put the value outside its interval.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == count else centre + half
    return Estimate(value=share, low=low, high=high, count=count)


def mean(values: Sequence[float]) -> Estimate:
    """A mean with Student's interval, from the spread between observations.

    One observation has no spread: its interval, 9.68 times its size to either side, says that next
    to nothing is known. Several that are all the same have none either, and say no more.
    """
    count = len(values)
    if count == 0:
        raise ValueError("the mean of nothing")
    centre = math.fsum(values) / count
    if min(values) == max(values):
        half = _OF_ONE * abs(centre)
        return Estimate(value=centre, low=centre - half, high=centre + half, count=count)
    variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)
    return Estimate(value=centre, low=centre - half, high=centre + half, count=count)
