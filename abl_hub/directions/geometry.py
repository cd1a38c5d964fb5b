"""How directions lie: to each other, to the answered prompts' mean, and how stable they are.

Knows activations as tensors; not the model that they came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abl_hub.directions.methods.projected import without


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The direction made again from other draws of the same training prompts.

    Args:
        halves: cosine between the directions of two disjoint halves, mean over splits.
        bootstrap_low: 5% quantile of the cosine between a bootstrap's direction and the full one.
        bootstrap_median: its median.
        same_layer: share of bootstraps whose best separating layer is the full sample's.
        draws: splits, and bootstraps.
    """

    halves: float
    bootstrap_low: float
    bootstrap_median: float
    same_layer: float
    draws: int


@dataclass(frozen=True, kw_only=True)
class LayerGeometry:
    """One layer's difference in means at the prompt's last token.

    Args:
        norm: of the difference, in units of the residual stream.
        to_ordinary: its cosine with the mean of the negative prompts.
        separation: the difference over the spread of both sides along it.
        effective_rank: of the paired differences, without their part along the negative mean.
    """

    layer: int
    norm: float
    to_ordinary: float
    separation: float
    effective_rank: float


def projected_mean_difference(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """(prompts, …, width) each → (…, width), float64: see `methods.projected`."""
    ordinary = negative.double().mean(0)
    return without(positive.double().mean(0) - ordinary, ordinary)


def separation(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """(prompts, layers, width) each → (layers,): mean difference over the spread along it."""
    one, other = positive.double(), negative.double()
    difference = one.mean(0) - other.mean(0)
    unit = difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    along = [(side * unit).sum(-1) for side in (one, other)]
    spread = (along[0].var(0) + along[1].var(0)).sqrt().clamp_min(1e-300)
    apart: torch.Tensor = difference.norm(dim=-1) / spread
    return apart


def stability(
    positive: torch.Tensor, negative: torch.Tensor, layer: int, *, draws: int = 50, seed: int = 0
) -> Stability:
    """Make the direction of `layer` again and again, from (prompts, layers, width) of each side."""
    generator = torch.Generator().manual_seed(seed)
    full = _unit(projected_mean_difference(positive[:, layer], negative[:, layer]))
    best = int(separation(positive, negative).argmax())
    halves, cosines, same = [], [], 0
    for _ in range(draws):
        one, other = (
            torch.randperm(len(side), generator=generator) for side in (positive, negative)
        )
        first, second = (
            _unit(
                projected_mean_difference(
                    positive[_half(one, part), layer], negative[_half(other, part), layer]
                )
            )
            for part in (0, 1)
        )
        halves.append(float(first @ second))
        again, beside = (
            torch.randint(len(side), (len(side),), generator=generator)
            for side in (positive, negative)
        )
        drawn = _unit(projected_mean_difference(positive[again, layer], negative[beside, layer]))
        cosines.append(float(drawn @ full))
        same += int(separation(positive[again], negative[beside]).argmax()) == best
    quantiles = torch.tensor(cosines).quantile(torch.tensor([0.05, 0.5]))
    return Stability(
        halves=sum(halves) / draws,
        bootstrap_low=float(quantiles[0]),
        bootstrap_median=float(quantiles[1]),
        same_layer=same / draws,
        draws=draws,
    )


def cosines(vectors: torch.Tensor) -> list[list[float]]:
    """Cosine between every two of `vectors` (n, width)."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    table: list[list[float]] = (unit @ unit.T).tolist()
    return table


def _half(order: torch.Tensor, part: int) -> torch.Tensor:
    middle = len(order) // 2
    return order[:middle] if part == 0 else order[middle:]


def _unit(vector: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = vector / vector.norm().clamp_min(1e-300)
    return unit
