"""Winsorized difference in means: outlying activations are clipped before the means are taken.

A few features of the residual stream are hundreds of times larger than the rest, in a few prompts
(massive activations, Sun et al. 2024), and would decide the difference. Each feature is clipped to
the quantiles of both sides together; then as in `projected`.
"""

from __future__ import annotations

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.projected import projected_mean_difference
from abl_hub.directions.proposal import Proposal, everywhere

_TAIL = 0.025


def propose(evidence: Evidence) -> list[Proposal]:
    """Difference of the clipped means, for every layer and position."""
    positive, negative = evidence.samples.positive, evidence.samples.negative
    layers, positions, width = positive.shape[1:]
    vectors = torch.empty(layers, positions, width, dtype=torch.float64)
    for layer in range(layers):
        vectors[layer] = winsorized_mean_difference(positive[:, layer], negative[:, layer])
    return everywhere(vectors)


def winsorized_mean_difference(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """(prompts, …, width) each → (…, width), float64."""
    one, other = positive.double(), negative.double()
    both = torch.cat([one, other])
    low, high = both.quantile(_TAIL, dim=0), both.quantile(1 - _TAIL, dim=0)
    return projected_mean_difference(one.clamp(low, high), other.clamp(low, high))
