"""Directions of single categories of a labelled prompt set, removed together (Joad et al. 2026).

Refusals of different categories need not share one direction. Each category's difference in means
is taken against all negative prompts, without its part along their mean; the subspaces that hold
most of them are proposed, and how the categories lie to each other is told by their cosines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.methods.svd import subspace
from abl_hub.directions.proposal import Proposal
from abl_hub.errors import ContrastError

_FEWEST_PROMPTS = 4


def propose(evidence: Evidence) -> list[Proposal]:
    """Subspaces of 2 … `rank` directions of the categories, for every layer, at the last token.

    Raises:
        ContrastError: the positive prompts carry fewer than two categories.
    """
    directions = category_directions(evidence)
    ordinary = evidence.means.negative.activations[:, -1]
    means = without(difference_in_means(evidence.means)[:, -1], ordinary)
    found = []
    for layer in range(len(means)):
        rows = torch.stack([vectors[layer] for vectors in directions.values()])
        components = torch.linalg.svd(rows, full_matrices=False).Vh
        for rank in range(2, min(evidence.rank, len(components)) + 1):
            found.append(subspace(means[layer], components[:rank], layer, -1))
    return found


def category_directions(evidence: Evidence) -> Mapping[str, torch.Tensor]:
    """Category → (layers, width), float64, not normalised; categories of 4 prompts or more.

    Raises:
        ContrastError: there are fewer than two.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    prompts = evidence.contrast.positive.train[: len(evidence.samples.positive)]
    for index, prompt in enumerate(prompts):
        if prompt in evidence.categories:
            rows[evidence.categories[prompt]].append(index)
    large = {name: indices for name, indices in rows.items() if len(indices) >= _FEWEST_PROMPTS}
    if len(large) < 2:
        raise ContrastError(
            "The positive prompts carry no categories",
            why=f"{len(large)} categories have {_FEWEST_PROMPTS} training prompts or more",
            next_step="Give --positive a column named category, or another --method",
        )
    ordinary = evidence.means.negative.activations[:, -1]
    last = evidence.samples.positive[:, :, -1].double()
    return {
        name: without(last[indices].mean(0) - ordinary, ordinary)
        for name, indices in sorted(large.items())
    }


def cosines(directions: Mapping[str, torch.Tensor], layer: int) -> dict[str, dict[str, float]]:
    """Cosine between every two categories' directions at `layer`."""
    units = {name: vectors[layer] / vectors[layer].norm() for name, vectors in directions.items()}
    return {one: {other: float(units[one] @ units[other]) for other in units} for one in units}
