"""Stability and separation, on activations whose direction is known."""

from __future__ import annotations

import pytest
import torch

from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import Samples
from abl_hub.directions.geometry import cosines, separation
from abl_hub.directions.methods.projected import projected_mean_difference
from abl_hub.directions.stability import Kind, across_seeds, stability

WIDTH = 32
PROJECTED = Kind(method="projected", position=-1, edited=True)


def sides(strength: float, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Four layers; the second separates the sides by `strength` along the first axis, and the last,
    which is too near to the output to be chosen, better than any."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(count, 4, WIDTH, generator=generator) for _ in range(2))
    positive[:, 1, 0] += strength
    positive[:, 3, 0] += 80.0
    return positive, negative


def test_a_strong_direction_is_stable_and_a_weak_one_is_not() -> None:
    strong = stability(*sides(20.0), 1, PROJECTED, draws=20)
    none = stability(*sides(0.0), 1, PROJECTED, draws=20)
    assert strong.halves > 0.9 > 0.4 > none.halves
    assert strong.bootstrap_low > 0.95
    assert strong.same_layer == 1.0
    assert none.same_layer < 1.0


def test_what_is_made_again_is_what_was_edited_if_it_can_be() -> None:
    def kind(method: str, position: int) -> Kind:
        vector = torch.ones(WIDTH)
        made = Direction(vector=vector, layer=1, position=position, norm=1.0, method=method)
        return Kind.of(made)

    assert kind("difference", -4) == Kind(method="difference", position=-4, edited=True)
    for method, position in (("leace", -3), ("caa", 0), ("svd", -1)):
        assert kind(method, position) == Kind(method="projected", position=-1, edited=False)
    one, other = (side[:, 1] + 3.0 for side in sides(5.0))
    plain = kind("difference", -1).make(one, other)
    assert torch.allclose(plain, one.double().mean(0) - other.double().mean(0))
    assert not torch.allclose(plain, PROJECTED.make(one, other))


def test_few_prompts_have_no_stability_and_no_draw_is_of_one_prompt() -> None:
    positive, negative = sides(5.0, 3)
    assert stability(positive, negative, 1, PROJECTED) is None
    # Layer 1 is best of all; a side of one prompt drawn four times would have no spread at layer 0.
    positive, negative = sides(40.0, 4)
    assert stability(positive, negative, 1, PROJECTED, draws=400).same_layer > 0.95


def test_other_splits_give_the_direction_again() -> None:
    def samples(strength: float) -> Samples:
        one, other = (side[:, :, None] for side in sides(strength, 80))
        return Samples(positive=one, negative=other)

    def part(whole: Samples, rows: slice) -> Samples:
        return Samples(positive=whole.positive[rows], negative=whole.negative[rows])

    found = []
    for strength in (20.0, 0.0):
        whole = samples(strength)
        first, *others = (part(whole, slice(k, k + 20)) for k in (0, 20, 40, 60))
        vector = PROJECTED.make(first.positive[:, 1, 0], first.negative[:, 1, 0])
        made = Direction(vector=vector, layer=1, position=-1, norm=1.0, method="projected")
        found.append(across_seeds(made, first, others, PROJECTED))
    strong, none = found
    assert strong.cosine_mean >= strong.cosine_min > 0.9 > 0.5 > none.cosine_mean
    assert (strong.count, strong.same_layer) == (3, 1.0)
    assert across_seeds(made, part(whole, slice(3)), others, PROJECTED) is None


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
