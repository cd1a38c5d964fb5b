"""Activation addition as an edit of weights: a constant that one of a layer's linear maps adds.

h ← h + c at one block's output, at every position (Arditi et al. 2024, section 2.4, equation 3), is
what the bias of the block's last writer adds, if nothing stands between it and the stream. Knows
which module can carry a constant; neither where weights lie nor how they are written.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from abl_hub.edits.carrying import Place, find_place
from abl_hub.model.layers import decoder_layers
from abl_hub.model.stream import adding
from abl_hub.model.writers import Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Addition:
    """What is added to the residual stream, and what carries it.

    Args:
        vector: (width,), float64, in units of the residual stream.
        layer: 0-based; added to the output of this block.
    """

    vector: torch.Tensor
    layer: int
    place: Place

    @property
    def constant(self) -> torch.Tensor:
        """(width,), float64: what the bias grows by; what arrives in the stream is `vector`."""
        return self.vector / self.place.scale

    @property
    def digest(self) -> str:
        """SHA-256 over vector and place: the edit's identity."""
        identity = hashlib.sha256(self.vector.numpy().tobytes())
        identity.update(f"{self.place.bias} {self.layer}".encode())
        return identity.hexdigest()


def addition(model: PreTrainedModel, trace: Trace, layer: int, vector: torch.Tensor) -> Addition:
    """Find what carries `vector` (width,) behind `layer`.

    Args:
        model: the architecture; the meta device is enough.

    Raises:
        UnsupportedModelError: nothing there can.
    """
    return Addition(
        vector=vector.detach().to("cpu", torch.float64).clone(),
        layer=layer,
        place=find_place(model, trace, layer),
    )


def added(edit: Addition, model: Any) -> AbstractContextManager[None]:
    """The runtime form: what the other two are held to."""
    return adding(decoder_layers(model)[1], edit.layer, edit.vector)
