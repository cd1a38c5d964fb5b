"""Batches of equal token length: no padding, so that a prompt's result does not depend on company.

Left padding changes positions in several architectures and states in some of them, whatever the
attention mask; equal lengths are exact everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Sequences of one length.

    Args:
        indices: where they stood in the input.
        tokens: (rows, length), int64.
    """

    indices: tuple[int, ...]
    tokens: torch.Tensor


def equal_length_batches(
    sequences: Sequence[Sequence[int]], *, rows: int, device: torch.device
) -> Iterator[Batch]:
    """Group `sequences` of token ids by length, at most `rows` a batch, shortest first."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, sequence in enumerate(sequences):
        by_length[len(sequence)].append(index)
    for length in sorted(by_length):
        indices = by_length[length]
        for start in range(0, len(indices), rows):
            chosen = indices[start : start + rows]
            yield Batch(
                indices=tuple(chosen),
                tokens=torch.tensor([list(sequences[i]) for i in chosen], device=device),
            )


def by_length(sequences: Sequence[Sequence[int]], *, rows: int) -> Iterator[list[int]]:
    """Indices of `sequences`, shortest first, at most `rows` at a time: little to fill up."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


def right_padded(sequences: Sequence[Sequence[int]], *, device: torch.device) -> torch.Tensor:
    """All `sequences` in one batch (rows, longest), int64; short ones repeat their last token.

    What a causal model computes at a token does not depend on what follows it, so every real token
    is right without a mask; up to rounding, which is why only what tolerates that is batched so.
    """
    longest = max(len(sequence) for sequence in sequences)
    rows = [[*one, *([one[-1]] * (longest - len(one)))] for one in sequences]
    return torch.tensor(rows, device=device)
