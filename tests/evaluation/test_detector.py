"""Numbers that tell two sides apart, on cases that are known."""

from __future__ import annotations

import random

import pytest

from abl_hub.evaluation.detector import auc, detect, threshold
from abl_hub.evaluation.intervals import proportion


def test_known_areas() -> None:
    assert auc([2, 3, 4], [0, 1]).value == 1.0
    assert auc([0, 1], [2, 3, 4]).value == 0.0
    assert auc([1, 2], [1, 2]).value == 0.5
    assert auc([1, 3], [0, 2]).value == 0.75
    with pytest.raises(ValueError, match="both sides"):
        auc([], [1.0])


def test_the_interval_narrows_with_more_prompts() -> None:
    few, many = auc([1, 3] * 4, [0, 2] * 4), auc([1, 3] * 40, [0, 2] * 40)
    assert few.value == many.value == 0.75
    assert few.low < many.low < 0.75 < many.high < few.high


def test_accuracy_is_taken_at_a_threshold_that_others_made() -> None:
    at = threshold([4.0, 6.0], [0.0, 2.0])
    assert at == 3.0
    found = detect([2.0, 5.0], [1.0, 2.0], at)
    assert found.accuracy.value == 0.75
    assert found.auc.value == 0.875


def test_two_prompts_that_are_apart_are_not_apart_for_certain() -> None:
    best, worst = auc([2, 3], [0, 1]), auc([0, 1], [2, 3])
    assert (best.value, best.high) == (1.0, 1.0)
    assert 0.2 < best.low < 0.5
    assert (worst.value, worst.low) == (0.0, 0.0)
    assert worst.high == pytest.approx(1 - best.low)
    # One prompt a side is one trial: the interval is Wilson's.
    assert auc([1], [0]).low == pytest.approx(proportion(1, 1).low)


@pytest.mark.parametrize(("shift", "area"), [(0.0, 0.5), (1.19, 0.8), (2.33, 0.95)])
def test_the_interval_covers_as_often_as_it_says(shift: float, area: float) -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(1000):
        found = auc([draw.gauss(shift, 1) for _ in range(8)], [draw.gauss(0, 1) for _ in range(8)])
        covered += found.low <= area <= found.high
    assert 0.93 < covered / 1000 <= 0.99
