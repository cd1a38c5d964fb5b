"""One file a method, one registry: means → one candidate vector for every layer and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from abl_hub.directions.means import Means
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import projected_difference

Method = Callable[[Means], torch.Tensor]
"""Means → (layers, positions, width), float64, not normalised."""

METHODS: Mapping[str, Method] = {
    "projected": projected_difference,
    "difference": difference_in_means,
}
