"""The one command that makes an artifact again: its recipe, with every source pinned.

Knows how a recipe is spelled on the command line; not how it was spelled by whoever ran it.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from abl_hub.report.recipe import DEFAULT_METHODS, Recipe
from abl_hub.report.record import PromptsRecord, Record

# Handled below: not an option, pinned by the record, or spelled in its own way.
_OTHERWISE = {"source", "revision", "positive", "negative", "sizes", "methods", "layers", "system"}

SYSTEM = "SYSTEM_PROMPT"
"""Stands for the system prompt: a card shows no prompt, and `record.json` holds it."""


def reproduce(record: Record) -> str:
    """`abl-hub convert …` with commits and revisions; of local folders and files, only the name."""
    recipe, source = record.recipe, record.source
    words = ["abl-hub", "convert", source.repo or Path(source.name).name]
    if source.commit is not None:
        words += ["--revision", source.commit]
    words += ["--positive", _pinned(record.positive), "--negative", _pinned(record.negative)]
    if recipe.sizes is not None:
        for name in ("train", "validation", "test"):
            words += [f"--{name}", str(getattr(recipe.sizes, name))]
    if recipe.methods != DEFAULT_METHODS:
        for method in recipe.methods:
            words += ["--method", method]
    if recipe.layers is not None:
        words += ["--layers", "-".join(map(str, recipe.layers))]
    if recipe.system is not None:
        words += ["--system", SYSTEM]
    for field in fields(Recipe):
        if field.name not in _OTHERWISE:
            words += _option(field, getattr(recipe, field.name))
    return shlex.join(words)


def _pinned(prompts: PromptsRecord) -> str:
    revision = f"@{prompts.revision}" if prompts.revision else ""
    split = f":{prompts.split}" if prompts.split else ""
    column = f"#{prompts.column}" if prompts.column and prompts.revision else ""
    return f"{prompts.name}{revision}{split}{column}"


def _option(field: Field[Any], value: Any) -> list[str]:
    if value == field.default and field.default is not MISSING:
        return []
    flag = "--" + field.name.replace("_", "-")
    return [flag] if value is True else [flag, str(value)]
