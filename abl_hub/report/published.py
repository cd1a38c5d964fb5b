"""The record as it is published: of this machine's folders and files, it holds the names alone."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from abl_hub.report.record import Record

# A path, absolute or from here, at the start of a text or behind "refusal:", up to its last name.
_FOLDERS = re.compile(r"(^|[:=](?!//))(?:~[^/]*|\.{1,2})?/(?:[^#]*/)?")
_AND = " + "


def published(record: Record) -> Record:
    """`record` without the paths of this machine."""
    recipe, source = record.recipe, record.source
    return replace(
        record,
        command=_command(record.command),
        source=replace(source, name=source.repo or Path(source.name).name),
        recipe=replace(
            recipe,
            source=source.repo or Path(recipe.source).name,
            positive=_name(recipe.positive),
            negative=_name(recipe.negative),
            test_sets=tuple(map(_name, recipe.test_sets)),
            judges=tuple(map(_name, recipe.judges)),
            tasks=recipe.tasks
            and replace(recipe.tasks, path=recipe.tasks.path and _name(recipe.tasks.path)),
        ),
    )


def _command(line: str) -> str:
    try:
        words = shlex.split(line)
    except ValueError:  # not from our own command line
        words = [line]
    return shlex.join(map(_name, words))


def _name(word: str) -> str:
    """A word of the command line, its folders left out."""
    return _AND.join(_FOLDERS.sub(r"\1", part.rstrip("/")) for part in word.split(_AND))
