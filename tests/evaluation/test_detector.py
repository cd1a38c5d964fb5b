"""Numbers that tell two sides apart, on cases that are known."""

from __future__ import annotations

import pytest

from abl_hub.evaluation.detector import auc, detect, threshold


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
