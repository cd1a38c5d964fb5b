"""Intervals against published values and their defining property."""

from __future__ import annotations

import random

import pytest
from scipy.stats import norm, t

from abl_hub.evaluation.intervals import Estimate, mean, proportion


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe 1998, table I, method 3 (Wilson without continuity correction).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_one(hits: int, count: int, low: float, high: float) -> None:
    estimate = proportion(hits, count)
    assert estimate.low == pytest.approx(low, abs=1e-4)
    assert estimate.high == pytest.approx(high, abs=1e-4)


def test_a_rate_of_one_is_not_certain() -> None:
    estimate = proportion(100, 100)
    assert estimate.value == estimate.high == 1.0
    assert 0.95 < estimate.low < 0.97


@pytest.mark.parametrize(("hits", "count"), [(1, 0), (3, 2), (-1, 4)])
def test_what_is_no_proportion_is_refused(hits: int, count: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        proportion(hits, count)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_the_mean_s_interval_covers_as_often_as_it_says(count: int) -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        estimate = mean([draw.gauss(3.0, 2.0) for _ in range(count)])
        covered += estimate.low <= 3.0 <= estimate.high
    assert 0.935 < covered / 2000 < 0.965


def test_student_s_interval_is_that_of_the_tables() -> None:
    estimate = mean([1.0, 2.0, 6.0])
    low, high = t.interval(0.95, df=2, loc=3.0, scale=(7.0 / 3.0) ** 0.5)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_the_same_again_and_again_is_no_certainty() -> None:
    same = mean([0.3] * 7)
    assert (same.value, same.count) == (pytest.approx(0.3), 7)
    assert (same.low, same.high) == pytest.approx((0.3 - 2.904, 0.3 + 2.904))
    assert mean([0.0] * 7) == Estimate(value=0.0, low=0.0, high=0.0, count=7)


def test_one_observation_says_next_to_nothing() -> None:
    assert mean([0.5]) == Estimate(value=0.5, low=0.5 - 4.84, high=0.5 + 4.84, count=1)
    assert mean([-0.5]).low < -5.0 < 4.0 < mean([-0.5]).high
    # Of a normal distribution it covers the mean in 95% at least, whatever mean and spread are: the
    # mean m, in units of the spread, is left out where the value lies between these two.
    times = mean([1.0]).high - 1.0
    for m in (n / 100 for n in range(1, 1000)):
        missed = norm.cdf(m / (times + 1) - m) - norm.cdf(-m / (times - 1) - m)
        assert missed < 0.05001
