"""The runtime form of an `Edit`: directions taken out of what the writers write, as the model runs.

Leaves the weights alone and a tied head untouched, so it is what the other two forms are held to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from abl_hub.edits.edit import Edit, Gains, factors
from abl_hub.model.stream import Projection, projecting

Active = Callable[[], AbstractContextManager[None]]
"""Opens a context in which the model runs as if it were edited; as often as one likes."""


def prepared(edit: Edit, model: Any, gains: Gains) -> Active:
    """Make `edit` ready to be switched on and off: its factors are computed once, here.

    Args:
        gains: effective gains of the norms between writers and stream, by parameter name.
    """
    projections = {}
    untouched = frozenset(
        writer.parameter
        for writer, strength in zip(edit.writers, edit.strengths, strict=True)
        if strength == 0.0
    )
    device: torch.device = model.get_input_embeddings().weight.device
    for writer, strength in zip(edit.writers, edit.strengths, strict=True):
        if strength != 0.0:
            change = factors(edit, writer, strength, gains)
            projections[writer.parameter] = (
                writer.axis,
                Projection(read=change.read.to(device), remove=change.remove.to(device)),
            )
    return partial(projecting, model, projections, untouched=untouched)


def applied(edit: Edit, model: Any, gains: Gains) -> AbstractContextManager[None]:
    """Run `model` as if it were edited, once."""
    return prepared(edit, model, gains)()
