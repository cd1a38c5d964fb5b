"""Projected difference in means: without its part along the mean of the answered prompts.

Ablation sets the component along r to zero. Where answered prompts have a component of their own
along r, zero is not where they are, and the model breaks; without that part, zero is the ordinary
value (Lai 2025, "projected abliteration"; the affine view is Marshall et al. 2024).
"""

from __future__ import annotations

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.proposal import Proposal, everywhere


def without(vectors: torch.Tensor, ordinary: torch.Tensor) -> torch.Tensor:
    """`vectors` (…, width) without their part along `ordinary` (…, width, broadcast)."""
    unit = ordinary / ordinary.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    projected: torch.Tensor = vectors - (vectors * unit).sum(-1, keepdim=True) * unit
    return projected


def projected_mean_difference(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """The same of single activations: (prompts, …, width) each → (…, width), float64."""
    ordinary = negative.double().mean(0)
    return without(positive.double().mean(0) - ordinary, ordinary)


def propose(evidence: Evidence) -> list[Proposal]:
    """r − (r · μ̂) μ̂ with μ̂ the direction of mean(negative), for every layer and position."""
    means = evidence.means
    return everywhere(without(difference_in_means(means), means.negative.activations))
