"""Difference in means (Arditi et al. 2024, equation 1; Marks & Tegmark 2023)."""

from __future__ import annotations

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.means import Means
from abl_hub.directions.proposal import Proposal, everywhere


def difference_in_means(means: Means) -> torch.Tensor:
    """r = mean(positive) − mean(negative), (layers, positions, width), float64."""
    return means.positive.activations - means.negative.activations


def mean_difference(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """The same of single activations: (prompts, …, width) each → (…, width), float64."""
    return positive.double().mean(0) - negative.double().mean(0)


def propose(evidence: Evidence) -> list[Proposal]:
    """One direction for every layer and position."""
    return everywhere(difference_in_means(evidence.means))
