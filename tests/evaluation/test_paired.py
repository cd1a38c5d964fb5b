"""Paired tests and agreement, on cases that are known."""

from __future__ import annotations

import pytest

from abl_hub.evaluation.paired import Paired, kappa, mcnemar, weakest


def test_known_probabilities() -> None:
    assert mcnemar([True] * 6, [False] * 6).p == pytest.approx(2 / 2**6)
    mixed = mcnemar([True, True, True, False, True], [False, False, False, True, True])
    assert (mixed.only_before, mixed.only_after) == (3, 1)
    assert mixed.p == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar([True, False], [True, False]).p == 1.0
    assert mcnemar([True, False], [False, True]).p == 1.0
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [])


def test_agreement_beyond_chance() -> None:
    assert kappa([True, False], [True, False]) == 1.0
    assert kappa([True, True, False, False], [True, False, True, False]) == 0.0
    assert kappa([True, True], [True, True]) is None
    assert kappa([True, False], [False, True]) == -1.0


def test_the_draw_that_says_least_speaks_for_all() -> None:
    one, two, three = (
        Paired(only_before=n, only_after=0, p=p) for n, p in ((9, 0.1), (8, 0.2), (7, 0.3))
    )
    paired = {"base → edited": two, "random → edited": one, "random 1 → edited": three}
    assert weakest(paired) == [("base → edited", 1, two), ("random 1 → edited", 2, three)]
