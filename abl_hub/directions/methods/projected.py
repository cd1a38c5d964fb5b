"""Projected difference in means: without its part along the mean of the answered prompts.

Ablation sets the component along r to zero. Where answered prompts have a component of their own
along r, zero is not where they are, and the model breaks; without that part, zero is the ordinary
value (Lai 2025, "projected abliteration"; the affine view is Marshall et al. 2024).
"""

from __future__ import annotations

import torch

from abl_hub.directions.means import Means
from abl_hub.directions.methods.difference import difference_in_means


def projected_difference(means: Means) -> torch.Tensor:
    """r − (r · μ̂) μ̂ with μ̂ the direction of mean(negative), (layers, positions, width), float64."""
    difference = difference_in_means(means)
    ordinary = means.negative.activations
    ordinary = ordinary / ordinary.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    along = (difference * ordinary).sum(-1, keepdim=True)
    projected: torch.Tensor = difference - along * ordinary
    return projected
