"""Stability and separation, on activations whose direction is known."""

from __future__ import annotations

import pytest
import torch

from abl_hub.directions.geometry import (
    cosines,
    projected_mean_difference,
    separation,
    stability,
)

WIDTH = 32


def sides(strength: float, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers; the second separates the sides by `strength` along the first axis."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(count, 2, WIDTH, generator=generator) for _ in range(2))
    positive[:, 1, 0] += strength
    return positive, negative


def test_a_strong_direction_is_stable_and_a_weak_one_is_not() -> None:
    strong = stability(*sides(20.0), 1, draws=20)
    none = stability(*sides(0.0), 1, draws=20)
    assert strong.halves > 0.9 > 0.4 > none.halves
    assert strong.bootstrap_low > 0.95
    assert strong.same_layer == 1.0
    assert none.same_layer < 1.0


def test_separation_is_difference_over_spread() -> None:
    apart = separation(*sides(10.0))
    assert float(apart[1]) == pytest.approx(10 / 2**0.5, rel=0.2)
    assert float(apart[1]) > 5 * float(apart[0])


def test_projection_leaves_ordinary_prompts_at_zero() -> None:
    positive, negative = sides(5.0)
    negative = negative + 3
    found = projected_mean_difference(positive[:, 1], negative[:, 1])
    assert abs(float(found @ negative[:, 1].double().mean(0))) < 1e-9


def test_cosines_of_known_vectors() -> None:
    table = cosines(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    assert table[0] == pytest.approx([1.0, 1.0, 0.0, -1.0])
