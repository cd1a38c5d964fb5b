"""Several directions from a self-organising map (Piras et al. 2026, SOM directions).

The positive prompts' activations at the last token are mapped onto a 4 × 4 grid of neurons; each
neuron minus the mean of the answered prompts is a direction. The paper chooses among the neurons by
512 trials of a search at one layer; here they are chosen there one after the other, each time that
whose removal beside the others leaves least of the behaviour within the limit of KL, on training
prompts. Beside these subspaces, those of the most frequented 2 … `rank` neurons of every layer are
proposed, and judged like any other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from minisom import MiniSom

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.geometry import separation
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.methods.svd import subspace
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import MAX_KL, allowed_layers, log_odds
from abl_hub.model.divergence import divergence
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.stream import ablating

# The paper's settings.
_SIDE = 4
_ITERATIONS = 10_000
_RATE = 0.01
_SIGMA = 0.33
_DEPENDENT = 1e-3
# Training prompts a side that the neurons are chosen on.
_ASKED = 32


def propose(evidence: Evidence) -> list[Proposal]:
    """Subspaces of 2 … `rank` neurons at the prompt's last token."""
    return [*frequented(evidence), *(searched(evidence) if evidence.rank > 1 else ())]


def frequented(evidence: Evidence) -> list[Proposal]:
    """Of those that won most prompts, for every layer."""
    found: list[Proposal] = []
    for layer in range(evidence.means.shape[0]):
        mean, rows = _directions(evidence, layer)
        found += _growing(mean, _independent(rows, evidence.rank), layer)
    return found


def searched(evidence: Evidence) -> list[Proposal]:
    """Of those that leave least together, at the layer that separates best."""
    apart = separation(evidence.samples.positive[:, :, -1], evidence.samples.negative[:, :, -1])
    layer = int(apart[: allowed_layers(len(apart))].argmax())
    mean, rows = _directions(evidence, layer)
    return _growing(mean, _chosen(rows, evidence), layer)


def _directions(evidence: Evidence, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The difference in means (width,) and the neurons' directions (neurons, width)."""
    ordinary = evidence.means.negative.activations[layer, -1]
    positive = evidence.samples.positive[:, layer, -1].double()
    rows = without(_neurons(positive, evidence.seed) - ordinary, ordinary)
    return without(difference_in_means(evidence.means)[layer, -1], ordinary), rows


def _growing(mean: torch.Tensor, chosen: torch.Tensor, layer: int) -> list[Proposal]:
    """The subspaces of the first 2, 3 … of `chosen`."""
    return [subspace(mean, chosen[:rank], layer, -1) for rank in range(2, len(chosen) + 1)]


def _chosen(rows: torch.Tensor, evidence: Evidence) -> torch.Tensor:
    """At most `rank` of `rows`, one after the other, each the best beside those before it."""
    leaves = _left(evidence)
    left = list(_independent(rows, len(rows)))
    chosen: list[torch.Tensor] = []
    while left and len(chosen) < evidence.rank:
        scores = [leaves(torch.stack([*chosen, row])) for row in left]
        chosen.append(left.pop(min(range(len(left)), key=scores.__getitem__)))
    return torch.stack(chosen) if chosen else rows[:0]


def _left(evidence: Evidence) -> Callable[[torch.Tensor], tuple[float, float]]:
    """What removing span(rows) leaves: by how much it misses the limit of KL, then the log-odds."""
    chat, contrast = evidence.chat, evidence.contrast
    positive, negative = contrast.positive.train[:_ASKED], contrast.negative.train[:_ASKED]
    before = next_token_log_probs(chat, negative, rows=evidence.rows)

    def left(rows: torch.Tensor) -> tuple[float, float]:
        with ablating(chat.layers, torch.linalg.qr(rows.T).Q.T.float()):
            shown = next_token_log_probs(chat, positive, rows=evidence.rows)
            after = next_token_log_probs(chat, negative, rows=evidence.rows)
        changed = float(divergence(before, after).mean())
        odds = float(log_odds(shown, evidence.behaviour_tokens).mean())
        return max(0.0, changed - MAX_KL), odds

    return left


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
