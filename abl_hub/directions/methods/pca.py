"""Principal component of paired differences (LAT, representation engineering: Zou et al. 2023).

Positive and negative prompts are paired at random and their differences signed at random, so that
the mean of the differences is part of what the component explains: centring plain differences
would take out the very thing that is looked for. The component points to the positive side.
"""

from __future__ import annotations

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.proposal import Proposal, everywhere


def propose(evidence: Evidence) -> list[Proposal]:
    """The first component for every layer and position, as long as the mean difference along it."""
    differences = evidence.samples.paired_differences(evidence.seed)
    means = difference_in_means(evidence.means)
    vectors = torch.empty_like(means)
    for layer in range(means.shape[0]):
        for index in range(means.shape[1]):
            rows = differences[:, layer, index].double()
            # The uncentred second moment is what random signs leave of the covariance.
            component = torch.linalg.svd(rows, full_matrices=False).Vh[0]
            vectors[layer, index] = (means[layer, index] @ component) * component
    return everywhere(without(vectors, evidence.means.negative.activations))
