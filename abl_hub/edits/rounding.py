"""Rounding an exact result to few bits so that the direction stays gone.

Rounding to nearest is harmless for the weights and leaves a share of the direction behind: about
0.01 of what a random direction holds in bfloat16, and nearly all of it in four bits. Direction-
cancelling rounding takes the entries by their falling weight in the direction and moves each by one
step of the format where that brings what is left closer to nothing.

Every format here is sign and magnitude, so its finite numbers in order are −m … m: an *ordinal*.
Knows numbers; neither files nor parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

CANCELLED_ENTRIES = 512
"""Entries of a stream vector that may move, for each direction. They lose weight in falling order:
after some hundred what is left is far below one step of the remaining ones."""


_QUARTERS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 5, *[6] * 6, 7]).byte()
"""⌈4 |x|⌉ → magnitude bits of the E2M1 number that is nearest to x."""

_HEAVY = 0.1
"""As a share of the heaviest entry of a direction."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A sign-and-magnitude number format.

    Args:
        dtype: torch's dtype of one code; None for E2M1, two of which share a byte, the low one
            first (Open Compute Project, Microscaling Formats 1.0, section 5.3.3).
        sign: the sign bit.
        largest: the magnitude bits of the largest finite number.
    """

    dtype: torch.dtype | None
    sign: int
    largest: int

    def ordinals(self, raw: torch.Tensor) -> torch.Tensor:
        """Bytes (rows, row_bytes) uint8 → ordinals (rows, columns) int32; both zeros become 0."""
        if self.dtype is None:
            return self._pairs[raw.int()].flatten(-2)
        if self.dtype.itemsize == 2:
            return self._signed(raw.view(torch.int16).int() & 0xFFFF)
        return self._signed(raw.int())

    def pack(self, ordinals: torch.Tensor) -> torch.Tensor:
        """The inverse of `ordinals`."""
        codes = torch.where(ordinals < 0, self.sign - ordinals, ordinals)
        if self.dtype is None:
            return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        if self.dtype.itemsize == 2:
            return codes.to(torch.int16).view(torch.uint8)
        return codes.to(torch.uint8)

    def values(self, ordinals: torch.Tensor) -> torch.Tensor:
        """The numbers themselves, float32."""
        numbers: torch.Tensor = self._grid[(ordinals + self.largest).long()]
        return numbers

    def decode(self, raw: torch.Tensor) -> torch.Tensor:
        """Bytes (rows, row_bytes) → numbers (rows, columns), float32."""
        if self.dtype is None:
            numbers: torch.Tensor = self.values(self._pairs)[raw.int()]
            return numbers.flatten(-2)
        return raw.view(self.dtype).float()

    def encode(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers (rows, columns) → bytes of the nearest finite ones of the format."""
        if self.dtype is None:
            # All that lies half way between two of its numbers is a multiple of a quarter.
            quarters = numbers.float().abs().mul_(4).ceil_().clamp_(max=len(_QUARTERS) - 1).int()
            codes = (numbers < 0).byte().mul_(self.sign) | _QUARTERS[quarters]
            return codes[..., 0::2] | codes[..., 1::2] << 4
        if self.dtype.itemsize == 1:
            numbers = numbers.clamp(self._grid[0], self._grid[-1])
        return numbers.to(self.dtype).view(torch.uint8)

    def _signed(self, codes: torch.Tensor) -> torch.Tensor:
        magnitude = codes & (self.sign - 1)
        return torch.where(codes & self.sign != 0, -magnitude, magnitude)

    @cached_property
    def _pairs(self) -> torch.Tensor:
        """Of every byte the ordinals of its two E2M1 codes, (256, 2), int32."""
        raw = torch.arange(256, dtype=torch.int32)
        return self._signed(torch.stack((raw & 0xF, raw >> 4), dim=-1))

    @cached_property
    def _grid(self) -> torch.Tensor:
        """All finite numbers, ascending (2 · largest + 1), float32."""
        if self.dtype is None:
            positive = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        else:
            bits = torch.int16 if self.dtype.itemsize == 2 else torch.uint8
            positive = torch.arange(self.largest + 1).to(bits).view(self.dtype).float()
        grid: torch.Tensor = torch.cat((-positive.flip(0)[:-1], positive))
        return grid


BF16 = Format(dtype=torch.bfloat16, sign=0x8000, largest=0x7F7F)
F16 = Format(dtype=torch.float16, sign=0x8000, largest=0x7BFF)
E4M3 = Format(dtype=torch.float8_e4m3fn, sign=0x80, largest=0x7E)
E2M1 = Format(dtype=None, sign=0x8, largest=0x7)


def by_weight(read: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries of a stream vector that may move, by their falling weight in `read` (k, n):
    the heavy ones, within a tenth of the heaviest, and the light ones.

    Several steps of a heavy entry are the edit itself, if it is hard to round; several of a light
    one would be noise in exchange for next to nothing.
    """
    weight = read.square().sum(dim=0)
    order = weight.argsort(descending=True, stable=True)[: CANCELLED_ENTRIES * len(read)]
    heavy = int((weight[order] >= _HEAVY**2 * weight.max()).sum())
    return order[:heavy], order[heavy:]


def cancel(
    ordinals: torch.Tensor,
    scales: torch.Tensor | None,
    number_format: Format,
    read: torch.Tensor,
    left: torch.Tensor,
) -> None:
    """Move entries by one step where that shrinks what is left along the directions; in place.

    Args:
        ordinals: (n, columns) int32, stream vectors as columns, rounded to nearest.
        scales: (n, columns), what each number is multiplied by; None for 1.
        read: (k, n) float64, the weight of each row in the directions.
        left: (k, columns) float64, read @ (rounded − exact) over all rows, also those not given;
            it is what is left afterwards when this returns.
    """
    for row in range(len(ordinals)):
        old = ordinals[row]
        weight = read[:, row, None]
        downhill = -(weight * left).sum(dim=0).sign().int()
        new = (old + downhill).clamp(-number_format.largest, number_format.largest)
        change = (number_format.values(new) - number_format.values(old)).double()
        if scales is not None:
            change *= scales[row]
        after = left + weight * change
        better = after.square().sum(dim=0) < left.square().sum(dim=0)
        ordinals[row] = torch.where(better, new, old)
        left.copy_(torch.where(better, after, left))
