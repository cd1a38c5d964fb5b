"""Intervals against published values and their defining property."""

from __future__ import annotations

import random

import pytest

from abl_hub.evaluation.intervals import mean, proportion


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


def test_the_mean_s_interval_covers_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(400):
        estimate = mean([draw.gauss(3.0, 2.0) for _ in range(50)])
        covered += estimate.low <= 3.0 <= estimate.high
    assert 0.91 < covered / 400 < 0.98
