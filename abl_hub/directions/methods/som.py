"""Several directions from a self-organising map (Piras et al. 2026, SOM directions).

The positive prompts' activations at the last token are mapped onto a 4 × 4 grid of neurons; each
neuron minus the mean of the answered prompts is a direction, and the neurons that won most prompts
are taken first. The paper chooses among the neurons by 512 trials of a search; here the subspaces
of the most frequented 2 … `rank` neurons are proposed for every layer, and judged like any other.
"""

from __future__ import annotations

import torch
from minisom import MiniSom

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.methods.svd import subspace
from abl_hub.directions.proposal import Proposal

# The paper's settings.
_SIDE = 4
_ITERATIONS = 10_000
_RATE = 0.01
_SIGMA = 0.33
_DEPENDENT = 1e-3


def propose(evidence: Evidence) -> list[Proposal]:
    """Subspaces of the most frequented neurons, for every layer, at the prompt's last token."""
    positive = evidence.samples.positive[:, :, -1].double()
    ordinary = evidence.means.negative.activations[:, -1]
    means = without(difference_in_means(evidence.means)[:, -1], ordinary)
    found = []
    for layer in range(len(means)):
        rows = without(
            _neurons(positive[:, layer], evidence.seed) - ordinary[layer], ordinary[layer]
        )
        chosen = _independent(rows, evidence.rank)
        for rank in range(2, len(chosen) + 1):
            found.append(subspace(means[layer], chosen[:rank], layer, -1))
    return found


def _neurons(activations: torch.Tensor, seed: int) -> torch.Tensor:
    """Weights of the neurons that won a prompt, most frequented first, (neurons, width)."""
    data = activations.numpy()
    som = MiniSom(_SIDE, _SIDE, data.shape[1], sigma=_SIGMA, learning_rate=_RATE, random_seed=seed)
    som.random_weights_init(data)
    som.train(data, _ITERATIONS, random_order=False)
    wins = torch.from_numpy(som.activation_response(data)).flatten()
    weights = torch.from_numpy(som.get_weights()).reshape(_SIDE * _SIDE, -1).double()
    order = wins.argsort(descending=True, stable=True)
    return weights[order[wins[order] > 0]]


def _independent(rows: torch.Tensor, most: int) -> torch.Tensor:
    """The first `most` rows that add a direction of their own, (k, width)."""
    kept: list[torch.Tensor] = []
    basis: list[torch.Tensor] = []
    for row in rows:
        rest = row - sum((row @ unit) * unit for unit in basis)
        if float(rest.norm()) > _DEPENDENT * float(row.norm()):
            basis.append(rest / rest.norm())
            kept.append(row)
        if len(kept) == most:
            break
    return torch.stack(kept) if kept else rows[:0]
