"""Affine erasure (LEACE: Belrose et al. 2023; ACE: Marshall et al. 2024) with a vanishing constant.

LEACE takes out of h what a linear classifier could use, with least change:
h ← h − δ (v · h − c), where δ is the difference in means and v lies along Σ⁻¹ δ, scaled so that
v · δ = 1. The constant c keeps answered prompts where they are. As an edit of weights it would have
to be written once into every token's stream (a bias, the embedding), and was measured to break
whole replies there, since it is right at one position only. So v is chosen within the plane where
v · mean(negative) = 0: then c = 0, answered prompts stay where they are on average, positive ones
move onto them, and the edit is a rank-one oblique projection that any architecture can carry.

Σ is the covariance within both sides, shrunk towards its mean variance (Ledoit & Wolf 2004).
"""

from __future__ import annotations

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.proposal import Proposal


def propose(evidence: Evidence) -> list[Proposal]:
    """One oblique direction for every layer and position."""
    samples = evidence.samples
    _, layers, positions, _ = samples.positive.shape
    found = []
    for layer in range(layers):
        for index in range(positions):
            proposal = _erasure(
                samples.positive[:, layer, index].double(),
                samples.negative[:, layer, index].double(),
                layer,
                index - positions,
            )
            if proposal is not None:
                found.append(proposal)
    return found


def _erasure(
    positive: torch.Tensor, negative: torch.Tensor, layer: int, position: int
) -> Proposal | None:
    ordinary = negative.mean(0)
    delta = positive.mean(0) - ordinary
    if float(delta.norm()) == 0.0:
        return None
    spread = torch.cat([positive - positive.mean(0), negative - ordinary])
    towards, across = _whitened(spread, torch.stack([delta, ordinary]))
    read = towards - (towards @ ordinary) / (across @ ordinary).clamp_min(1e-300) * across
    read = read / read.norm().clamp_min(1e-300)
    share = float(read @ delta)
    # Where the sides differ in the length of one mean alone, nothing is left to read.
    if share <= 1e-6 * float(delta.norm()):
        return None
    return Proposal(
        layer=layer,
        position=position,
        basis=read[None],
        addition=delta,
        along=(delta / share)[None],
    )


def _whitened(spread: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Σ⁻¹ applied to the rows of `vectors`, Σ the shrunk covariance of centred rows (n, width).

    Through the n × n Gram matrix (Woodbury), since there are far fewer prompts than features.
    """
    count, width = spread.shape
    gram = spread @ spread.T
    squared = gram.square().sum() / count**2
    variance = gram.diagonal().sum() / (count * width)
    distance = (squared - width * variance**2).clamp_min(1e-300)
    noise = (gram.diagonal().square().sum() / count - squared) / count
    # Never none: fewer prompts than features leave the covariance singular.
    shrinkage = float((noise / distance).clamp(1e-3, 1.0))
    floor = shrinkage * variance.clamp_min(1e-300)
    weight = (1 - shrinkage) / count
    if weight == 0.0:
        return vectors / floor
    inner = gram + torch.eye(count, dtype=torch.float64) * floor / weight
    within: torch.Tensor = torch.linalg.solve(inner, spread @ vectors.T).T @ spread
    return (vectors - within) / floor
