"""The `Edit` that a record describes: the same one for every form, check and undoing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from abl_hub.directions.direction import Direction
from abl_hub.edits.edit import Edit, remove
from abl_hub.model.writers import Trace
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record
from abl_hub.strengths.groups import groups, spread


def asked_edit(recipe: Recipe, direction: Direction, trace: Trace) -> Edit:
    """What the recipe asks for: one strength, in the layers that it names.

    Raises:
        EditError: no writer lies in those layers.
    """
    return remove(
        direction.basis,
        trace.writers,
        recipe.strength,
        layers=recipe.layers,
        along=direction.along,
    )


def recorded_edit(record: Record, direction: Direction, trace: Trace) -> Edit:
    """What the record holds: `asked_edit`, scaled by the fitted strengths if there are any."""
    edit = asked_edit(record.recipe, direction, trace)
    if record.strengths is None or record.strengths.chosen is None:
        return edit
    return scaled(edit, groups(trace), record.strengths.points[record.strengths.chosen].strengths)


def scaled(edit: Edit, names: tuple[str, ...], strengths: Mapping[str, float]) -> Edit:
    """`edit` with the strength of every writer multiplied by that of its group."""
    fitted = spread(names, strengths)
    return replace(
        edit, strengths=tuple(a * b for a, b in zip(edit.strengths, fitted, strict=True))
    )
