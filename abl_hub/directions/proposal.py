"""What a method proposes: directions to remove, where they were read, and what adding them adds.

Knows vectors; not how they were found, nor how good they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposal:
    """One candidate, to be judged.

    Args:
        layer: 0-based decoder layer at whose output it was read.
        position: counted from the prompt's end, -1 is its last token; 0 is the reply itself.
        basis: (k, width), float64, orthonormal rows: what is removed; the first is the direction.
        addition: (width,), float64: what activation addition adds at `layer`.
        along: (k, width), float64: what is subtracted for each component; None is `basis`.
    """

    layer: int
    position: int
    basis: torch.Tensor
    addition: torch.Tensor
    along: torch.Tensor | None = None

    @property
    def norm(self) -> float:
        """Length of the addition, in units of the residual stream."""
        return float(self.addition.norm())


def single(vector: torch.Tensor, layer: int, position: int) -> Proposal:
    """The proposal to remove `vector` (width,), and to add it as long as it is."""
    return Proposal(
        layer=layer, position=position, basis=(vector / vector.norm())[None], addition=vector
    )


def everywhere(vectors: torch.Tensor) -> list[Proposal]:
    """Single proposals from a grid (layers, positions, width); zero vectors propose nothing."""
    layers, positions, _ = vectors.shape
    return [
        single(vectors[layer, index], layer, index - positions)
        for layer in range(layers)
        for index in range(positions)
        if float(vectors[layer, index].norm()) > 0
    ]
