"""The `Edit` that a record describes: the same one for every form, check and undoing."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from abl_hub.directions.direction import Direction
from abl_hub.edits.edit import Edit, remove
from abl_hub.errors import EditError
from abl_hub.model.writers import Trace
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record
from abl_hub.strengths.groups import groups, spread


def asked_edit(recipe: Recipe, direction: Direction, trace: Trace) -> Edit:
    """What the recipe asks for: one strength, in the layers and writers that it names.

    Raises:
        EditError: no writer lies in those layers, a pattern fits none, or its strength is
            no number.
    """
    return removal(recipe, direction.basis, direction.along, trace)


def example_removal(recipe: Recipe, trace: Trace) -> Edit:
    """The removal of some direction or other: which writers it edits, and how strongly.

    Raises:
        EditError: as `asked_edit`.
    """
    return removal(recipe, torch.eye(trace.width, dtype=torch.float64)[:1], None, trace)


def removal(recipe: Recipe, basis: torch.Tensor, along: torch.Tensor | None, trace: Trace) -> Edit:
    """The same for directions that are not chosen yet: `basis` (k, width)."""
    if recipe.layers is not None and recipe.layers[1] >= trace.layer_count:
        raise EditError(
            f"There is no layer {recipe.layers[1]}",
            why=f"the model's are 0 to {trace.layer_count - 1}",
            next_step="Give a range of layers that the model has",
        )
    edit = remove(basis, trace.writers, recipe.strength, layers=recipe.layers, along=along)
    if recipe.writers is None:
        return edit
    names = [writer.parameter for writer in edit.writers]
    factors = dict.fromkeys(names, 0.0)
    for asked in recipe.writers:
        pattern, factor = _pattern(asked)
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise EditError(
                f"No writer fits {pattern!r}",
                why=f"the nearest is {near[0]}" if near else "",
                next_step="See `abl-hub trace`",
            )
        factors |= dict.fromkeys(fitting, factor)
    strengths = tuple(
        factors[name] * strength for name, strength in zip(names, edit.strengths, strict=True)
    )
    return replace(edit, strengths=strengths)


def _pattern(asked: str) -> tuple[str, float]:
    """`PATTERN=STRENGTH`, or `PATTERN` alone for 1."""
    pattern, equals, number = asked.rpartition("=")
    if not equals:
        return asked, 1.0
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise EditError(
            f"{number!r} is no strength",
            next_step=f"Write a number, as in '{pattern}=0.5'",
        )
    return pattern, strength


def recorded_edit(record: Record, direction: Direction, trace: Trace) -> Edit:
    """What the record holds: `asked_edit`, scaled by the fitted strengths if there are any."""
    if record.recipe.induce:
        raise EditError("This direction was added, not removed", next_step="Run `abl-hub apply`")
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
