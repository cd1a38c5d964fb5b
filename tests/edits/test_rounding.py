"""Number formats as ordinals, and rounding that cancels a direction."""

from __future__ import annotations

import pytest
import torch

from abl_hub.edits.rounding import BF16, E2M1, E4M3, F16, Format, by_weight, cancel

FORMATS = {"bf16": BF16, "f16": F16, "e4m3": E4M3, "e2m1": E2M1}
WIDTH, COLUMNS = 512, 96


@pytest.fixture(params=FORMATS)
def number_format(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


def test_ordinals_count_all_finite_numbers_in_order(number_format: Format) -> None:
    ordinals = torch.arange(-number_format.largest, number_format.largest + 1)[None].int()
    values = number_format.values(ordinals)
    assert bool((values.diff() > 0).all())
    assert bool(values.isfinite().all())
    assert torch.equal(values, -values.flip(1))


def test_packing_returns_every_code(number_format: Format) -> None:
    ordinals = torch.arange(-number_format.largest, number_format.largest)[None].int()
    raw = number_format.pack(ordinals)
    assert torch.equal(number_format.ordinals(raw), ordinals)
    assert torch.equal(number_format.decode(raw), number_format.values(ordinals))


def test_encoding_is_nearest_and_saturates(number_format: Format) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(4, 64, generator=generator) * 3
    rounded = number_format.ordinals(number_format.encode(numbers))
    error = (number_format.values(rounded) - numbers).abs()
    for step in (-1, 1):
        other = number_format.values(
            (rounded + step).clamp(-number_format.largest, number_format.largest)
        )
        assert bool((error <= (other - numbers).abs()).all())
    if number_format in (E4M3, E2M1):
        huge = number_format.decode(number_format.encode(torch.tensor([[1e9, -1e9]])))
        largest = float(number_format.values(torch.tensor(number_format.largest)))
        assert huge.tolist() == [[largest, -largest]]


def test_a_known_value_of_each_format() -> None:
    assert E2M1.decode(torch.tensor([[0x7F]], dtype=torch.uint8)).tolist() == [[-6.0, 6.0]]
    assert E4M3.decode(torch.tensor([[0x38]], dtype=torch.uint8)).tolist() == [[1.0]]
    assert BF16.decode(torch.tensor([[0x80, 0xBF]], dtype=torch.uint8)).tolist() == [[-1.0]]


@pytest.mark.parametrize("rank", [1, 3])
def test_cancelling_shrinks_what_is_left_at_little_cost(number_format: Format, rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    read = torch.randn(rank, WIDTH, generator=generator, dtype=torch.float64)
    read = torch.linalg.qr(read.T).Q.T.contiguous()
    exact = torch.randn(WIDTH, COLUMNS, generator=generator, dtype=torch.float64)
    exact -= read.T @ (read @ exact)
    ordinals = number_format.ordinals(number_format.encode(exact))
    nearest = number_format.values(ordinals).double()
    left = read @ (nearest - exact)
    order = torch.cat(by_weight(read))
    moving = ordinals[order].contiguous()
    cancel(moving, None, number_format, read[:, order], left)
    ordinals[order] = moving
    moved = number_format.values(ordinals).double()

    assert torch.allclose(left, read @ (moved - exact), atol=1e-9), "what it says is left, is left"
    before, after = (read @ nearest).norm(), (read @ moved).norm()
    assert after < before / (300 if rank == 1 else 10)
    # Four bits leave steps so coarse that the moves cost about as much as the rounding did.
    allowed = 2.5 if number_format is E2M1 else 1.5
    assert (moved - exact).norm() < allowed * (nearest - exact).norm()


def test_nothing_moves_where_nothing_is_left(number_format: Format) -> None:
    ordinals = torch.tensor([[3, -2], [0, 1]], dtype=torch.int32)
    before = ordinals.clone()
    read = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    cancel(ordinals, None, number_format, read, torch.zeros(1, 2, dtype=torch.float64))
    assert torch.equal(ordinals, before)
