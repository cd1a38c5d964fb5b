"""The runtime form of an `Edit`: directions taken out of what the writers write, as the model runs.

Leaves the weights alone and a tied head untouched, so it is what the other two forms are held to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from abl_hub.edits.edit import Edit, Gains, factors
from abl_hub.model.stream import Projection, projecting


@contextmanager
def applied(edit: Edit, model: Any, gains: Gains) -> Iterator[None]:
    """Run `model` as if it were edited.

    Args:
        gains: effective gains of the norms between writers and stream, by parameter name.
    """
    projections = {}
    device: torch.device = model.get_input_embeddings().weight.device
    for writer, strength in zip(edit.writers, edit.strengths, strict=True):
        if strength != 0.0:
            change = factors(edit, writer, strength, gains)
            projections[writer.parameter] = (
                writer.axis,
                Projection(read=change.read.to(device), remove=change.remove.to(device)),
            )
    with projecting(model, projections):
        yield
