"""Difference in means (Arditi et al. 2024, equation 1; Marks & Tegmark 2023)."""

from __future__ import annotations

import torch

from abl_hub.directions.means import Means


def difference_in_means(means: Means) -> torch.Tensor:
    """r = mean(positive) − mean(negative), (layers, positions, width), float64."""
    return means.positive.activations - means.negative.activations
