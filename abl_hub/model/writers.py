"""What writes to the residual stream, along which axis, what lies between; what could carry more.

Values only: `abl_hub.model.trace` finds them. Knows neither weights nor directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A per-feature gain between the parameter and the stream (a norm's weight): r ← g ⊙ r."""

    parameter: str
    """Name of the gain's parameter in the model's module tree."""


@dataclass(frozen=True, kw_only=True)
class Centre:
    """A centring between the parameter and the stream (LayerNorm's): r ← r − mean(r)."""


Between = Gain | Centre


@dataclass(frozen=True, kw_only=True)
class Writer:
    """One parameter that writes to the residual stream.

    What the parameter adds to the stream along a direction r is what it holds along
    v = between(r) on `axis`; v = r where nothing lies between.
    """

    parameter: str
    """Name in the model's module tree, as in `model.named_parameters()`."""
    axis: int
    """Axis of the parameter that is the stream (0-based)."""
    shape: tuple[int, ...]
    between: tuple[Between, ...] = ()
    """Applied to r in this order to reach the parameter."""
    layer: int | None = None
    """0-based decoder layer that holds it; None for embeddings and what is outside the layers."""
    tied_to_head: bool = False
    """The same tensor is the output head, so an edit in place would change the head too."""

    @property
    def rescaled(self) -> bool:
        """A norm stands between parameter and stream: the null is exact, the rest is rescaled."""
        return bool(self.between)


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """A linear map whose output, bias included, is added to the output of one block.

    Args:
        layer: 0-based.
        weight: name of its weight.
        bias: name of its bias, if the architecture gives it one.
        scale: what its output is multiplied by before it is added (a residual multiplier).
    """

    layer: int
    weight: str
    bias: str | None
    scale: float = 1.0

    @property
    def module(self) -> str:
        """Name of the module that holds the weight."""
        return self.weight.rpartition(".")[0]


Exactness = Literal["exact", "exact null, rescaled", "head changed"]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All writers of a model, found exactly."""

    model_type: str
    architecture: str
    layers: str
    """Module path of the list of decoder layers."""
    layer_count: int
    width: int
    """Width of the residual stream."""
    writers: tuple[Writer, ...]
    carriers: tuple[Carrier, ...] = ()
    """What could add a constant to a block's output."""
