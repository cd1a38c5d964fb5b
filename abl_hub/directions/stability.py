"""How stable a direction is: made again from other prompts, at the same layer and position.

Knows activations as tensors, and the methods that are means of them alone; of other methods the
projected difference in means at the prompt's last token stands in, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import Samples
from abl_hub.directions.geometry import separation
from abl_hub.directions.methods.difference import mean_difference
from abl_hub.directions.methods.projected import projected_mean_difference
from abl_hub.directions.methods.winsorized import winsorized_mean_difference
from abl_hub.directions.selection import allowed_layers

FEWEST = 4
"""Prompts a side, below which there is no spread and nothing to draw from."""

_STAND_IN = "projected"
_MEANS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "difference": mean_difference,
    "projected": projected_mean_difference,
    "winsorized": winsorized_mean_difference,
    "harm": projected_mean_difference,
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is made again.

    Args:
        method: "difference", "projected", "winsorized" or "harm".
        position: counted from the prompt's end, -1 is its last token.
        edited: whether that is how the edited direction was made.
    """

    method: str
    position: int
    edited: bool

    @classmethod
    def of(cls, direction: Direction) -> Kind:
        """That of `direction`, if it is made of means at a token of the prompt."""
        if direction.method in _MEANS and direction.position < 0:
            return cls(method=direction.method, position=direction.position, edited=True)
        return cls(method=_STAND_IN, position=-1, edited=False)

    def make(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """(prompts, …, width) each → (…, width), float64, not normalised."""
        return _MEANS[self.method](positive, negative)


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The direction made again from other draws of the same training prompts.

    Args:
        halves: cosine between the directions of two disjoint halves, mean over splits.
        bootstrap_low: 5% quantile of the cosine between a bootstrap's direction and the full one.
        bootstrap_median: its median.
        same_layer: share of bootstraps whose best separating layer, of those that the selection
            may choose, is the full sample's.
        draws: splits, and bootstraps.
        method: what was made again: the edited direction's method where that is a mean of
            activations, or else the projected difference in means.
        position: where; the edited direction's, or else the last token.
    """

    halves: float
    bootstrap_low: float
    bootstrap_median: float
    same_layer: float
    draws: int
    method: str = _STAND_IN
    position: int = -1


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The direction made again from other splits of the two prompt sets.

    Args:
        count: how many other seeds of the split.
        cosine_min: the least cosine with the edited direction, or, where its method is not a mean
            of activations, with what stands in for it.
        cosine_mean: their mean.
        same_layer: share of the seeds whose best separating layer is the same.
        method: as in `Stability`.
        position: likewise.
    """

    count: int
    cosine_min: float
    cosine_mean: float
    same_layer: float
    method: str
    position: int


def stability(
    positive: torch.Tensor,
    negative: torch.Tensor,
    layer: int,
    kind: Kind,
    *,
    draws: int = 50,
    seed: int = 0,
) -> Stability | None:
    """Make the direction of `layer` again and again, from (prompts, layers, width) of each side.

    The tensors are of `kind.position`. None where a side has fewer than `FEWEST` prompts.
    """
    if min(len(positive), len(negative)) < FEWEST:
        return None
    generator = torch.Generator().manual_seed(seed)
    full = _unit(kind.make(positive[:, layer], negative[:, layer]))
    best = _best_layer(positive, negative)
    halves, cosines, same = [], [], 0
    for _ in range(draws):
        one, other = (
            torch.randperm(len(side), generator=generator) for side in (positive, negative)
        )
        first, second = (
            _unit(kind.make(positive[_half(one, part), layer], negative[_half(other, part), layer]))
            for part in (0, 1)
        )
        halves.append(float(first @ second))
        again, beside = (_bootstrap(len(side), generator) for side in (positive, negative))
        drawn = _unit(kind.make(positive[again, layer], negative[beside, layer]))
        cosines.append(float(drawn @ full))
        same += _best_layer(positive[again], negative[beside]) == best
    quantiles = torch.tensor(cosines).quantile(torch.tensor([0.05, 0.5]))
    return Stability(
        halves=sum(halves) / draws,
        bootstrap_low=float(quantiles[0]),
        bootstrap_median=float(quantiles[1]),
        same_layer=same / draws,
        draws=draws,
        method=kind.method,
        position=kind.position,
    )


def across_seeds(
    direction: Direction, first: Samples, others: Iterable[Samples], kind: Kind
) -> Seeds | None:
    """Make `direction` again from `others`, the training prompts of other splits.

    Args:
        first: of the split that it was made from; all with `kind.position` among their positions.

    None where a side has fewer than `FEWEST` prompts.
    """
    if min(len(first.positive), len(first.negative)) < FEWEST:
        return None
    layer = direction.layer
    one, best = _made(first, layer, kind)
    reference = direction.vector if kind.edited else one
    cosines, same = [], 0
    for samples in others:
        again, layer_again = _made(samples, layer, kind)
        cosines.append(float(reference @ again))
        same += layer_again == best
    return Seeds(
        count=len(cosines),
        cosine_min=min(cosines),
        cosine_mean=math.fsum(cosines) / len(cosines),
        same_layer=same / len(cosines),
        method=kind.method,
        position=kind.position,
    )


def _made(samples: Samples, layer: int, kind: Kind) -> tuple[torch.Tensor, int]:
    """The unit direction of `layer`, and the layer that separates best."""
    one, other = (side[:, :, kind.position] for side in (samples.positive, samples.negative))
    return _unit(kind.make(one[:, layer], other[:, layer])), _best_layer(one, other)


def _best_layer(positive: torch.Tensor, negative: torch.Tensor) -> int:
    """The layer that separates best, of those far enough from the output to be chosen."""
    apart = separation(positive, negative)
    return int(apart[: allowed_layers(len(apart))].argmax())


def _bootstrap(count: int, generator: torch.Generator) -> torch.Tensor:
    """Prompts drawn with replacement; drawn again if all are one, which has no spread."""
    while True:
        drawn = torch.randint(count, (count,), generator=generator)
        if bool((drawn != drawn[0]).any()):
            return drawn


def _half(order: torch.Tensor, part: int) -> torch.Tensor:
    middle = len(order) // 2
    return order[:middle] if part == 0 else order[middle:]


def _unit(vector: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = vector / vector.norm().clamp_min(1e-300)
    return unit
