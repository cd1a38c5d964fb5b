"""A subspace of refusal: the leading singular directions of paired differences, removed together.

For behaviours that are spread over several directions. The differences are taken without their
part along the mean of the answered prompts, so that zero is their ordinary value in every one of
the directions; how many directions there are is told by the effective rank and explained shares
(`abl_hub.directions.methods.svd.spectrum`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.proposal import Proposal


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """How paired differences are spread over directions.

    Args:
        shares: of the squared length, by singular direction, largest first; they sum to 1.
        effective_rank: exp of the entropy of the shares (Roy & Vetterli 2007).
    """

    shares: tuple[float, ...]
    effective_rank: float


def spectrum(differences: torch.Tensor) -> Spectrum:
    """Spectrum of `differences` (pairs, width)."""
    power = torch.linalg.svdvals(differences.double()).square()
    shares = power / power.sum().clamp_min(1e-300)
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    return Spectrum(shares=tuple(shares.tolist()), effective_rank=float(entropy.exp()))


def propose(evidence: Evidence) -> list[Proposal]:
    """Subspaces of 2 … `rank` directions at the prompt's last token, for every layer."""
    differences = evidence.samples.paired_differences(evidence.seed)[:, :, -1].double()
    ordinary = evidence.means.negative.activations[:, -1]
    means = without(difference_in_means(evidence.means)[:, -1], ordinary)
    found = []
    for layer in range(len(means)):
        rows = without(differences[:, layer], ordinary[layer])
        components = torch.linalg.svd(rows, full_matrices=False).Vh
        for rank in range(2, min(evidence.rank, len(components)) + 1):
            found.append(subspace(means[layer], components[:rank], layer, -1))
    return found


def subspace(mean: torch.Tensor, rows: torch.Tensor, layer: int, position: int) -> Proposal:
    """Remove span(rows), (k, width); its first direction is the part of `mean` that lies in it."""
    span = torch.linalg.qr(rows.T).Q.T
    first = (mean @ span.T) @ span
    basis = torch.linalg.qr(torch.cat([first[None], span]).T).Q.T[: len(span)]
    basis = basis * torch.sign(basis[0] @ first)
    return Proposal(layer=layer, position=position, basis=basis, addition=first)
