"""How directions lie: to each other, and to the answered prompts' mean.

Knows activations as tensors; not the model that they came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class LayerGeometry:
    """One layer's difference in means at the prompt's last token.

    Args:
        norm: of the difference, in units of the residual stream.
        to_ordinary: its cosine with the mean of the negative prompts.
        separation: the difference over the spread of both sides along it; None where there are too
            few prompts to speak of a spread.
        effective_rank: of the paired differences, without their part along the negative mean.
    """

    layer: int
    norm: float
    to_ordinary: float
    separation: float | None
    effective_rank: float


def separation(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """(prompts, layers, width) each → (layers,): mean difference over the spread along it."""
    one, other = positive.double(), negative.double()
    difference = one.mean(0) - other.mean(0)
    unit = difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    along = [(side * unit).sum(-1) for side in (one, other)]
    spread = (along[0].var(0) + along[1].var(0)).sqrt().clamp_min(1e-300)
    apart: torch.Tensor = difference.norm(dim=-1) / spread
    return apart


def cosines(vectors: torch.Tensor) -> list[list[float]]:
    """Cosine between every two of `vectors` (n, width)."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    table: list[list[float]] = (unit @ unit.T).tolist()
    return table
