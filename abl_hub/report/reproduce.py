"""The one command that makes an artifact again: its recipe, with every source pinned.

Knows how a recipe is spelled on the command line; not how it was spelled by whoever ran it.
"""

from __future__ import annotations

import shlex
import unicodedata
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from abl_hub.evaluation.tasks import Tasks
from abl_hub.report.published import published
from abl_hub.report.recipe import DEFAULT_METHODS, Recipe
from abl_hub.report.record import PromptsRecord, Record

# Handled below: not an option, pinned by the record, or spelled in its own way.
_OTHERWISE = frozenset(
    {"source", "revision", "positive", "negative", "sizes", "methods"}
    | {"layers", "system", "tasks", "test_sets", "test_set_limit", "untie"}
)

# What prompts are read from; a data set of the Hub has no such name.
_FILES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")

SYSTEM = "SYSTEM_PROMPT"
"""Stands for the system prompt: a card shows no prompt, and `record.json` holds it."""


def reproduce(record: Record) -> tuple[str, ...]:
    """`abl-hub convert …` and its options, with commits and revisions, quoted for bash.

    Each part is one line, and shows every character. Of local folders and files, only the name.
    """
    record = published(record)
    recipe, source = record.recipe, record.source
    options = [
        ["--positive", _pinned(record.positive, recipe.positive)],
        ["--negative", _pinned(record.negative, recipe.negative)],
    ]
    if source.commit is not None:
        options.insert(0, ["--revision", source.commit])
    if recipe.sizes is not None:
        sizes = ("train", "validation", "test")
        options.append([w for n in sizes for w in (f"--{n}", str(getattr(recipe.sizes, n)))])
    if recipe.methods != DEFAULT_METHODS:
        options.append([word for method in recipe.methods for word in ("--method", method)])
    if recipe.layers is not None:
        options.append(["--layers", "-".join(map(str, recipe.layers))])
    if not recipe.untie:
        options.append(["--no-untie"])
    if recipe.system is not None:
        options.append(["--system", recipe.system and SYSTEM])
    for one in recipe.test_sets:
        kind, colon, spec = one.partition(":")
        options.append(["--test-set", f"{kind}{colon}{_by_name(spec)}"])
    if recipe.test_sets and recipe.test_set_limit != Recipe.test_set_limit:
        options.append(["--test-set-limit", str(recipe.test_set_limit)])
    if recipe.tasks is not None:
        options.append(_tasks(recipe.tasks))
    for field in fields(Recipe):
        if field.name not in _OTHERWISE:
            options.append(_option(field, getattr(recipe, field.name)))
    command = ["abl-hub", "convert", source.repo or Path(source.name).name]
    return tuple(" ".join(map(_word, words)) for words in (command, *options) if words)


def _word(text: str) -> str:
    """One word of bash, on one line; characters that are not seen are spelled out."""
    if not any(_unseen(one) for one in text):
        return shlex.quote(text)
    return "$'" + "".join(map(_spelled, text)) + "'"


def _spelled(one: str) -> str:
    if one == "\n":
        return r"\n"
    if _unseen(one):
        return f"\\U{ord(one):08x}"
    return f"\\{one}" if one in "\\'" else one


def _unseen(one: str) -> bool:
    """Control, format and private characters, and every space but the plain one."""
    return one != " " and unicodedata.category(one)[0] in "CZ"


def _by_name(spec: str) -> str:
    """A prompt set as it was asked for; of local files, only the name."""

    def named(part: str) -> str:
        path, mark, column = part.partition("#")
        name = Path(path).name if Path(path).suffix in _FILES else path
        return f"{name}{mark}{column}"

    portions = (" + ".join(map(named, part.split(" + "))) for part in spec.split(" | "))
    return " | ".join(portions)


def _tasks(tasks: Tasks) -> list[str]:
    words = ["--tasks", ",".join(tasks.names)]
    if tasks.path is not None:
        words += ["--tasks-path", Path(tasks.path).name]
    if tasks.limit is not None:
        words += ["--tasks-limit", str(tasks.limit)]
    return [*words, "--tasks-chat-template"] if tasks.chat_template else words


def _pinned(prompts: PromptsRecord, asked: str) -> str:
    """What loads the same prompts again; files have no commit to pin."""
    if prompts.spec is not None:
        return prompts.spec
    if prompts.revision is None:
        return _by_name(asked)
    split = f":{prompts.split}" if prompts.split else ""
    column = f"#{prompts.column}" if prompts.column else ""
    return f"{prompts.name}@{prompts.revision}{split}{column}"


def _option(field: Field[Any], value: Any) -> list[str]:
    if value == field.default and field.default is not MISSING:
        return []
    flag = "--" + field.name.replace("_", "-")
    if isinstance(value, tuple):
        return [word for one in value for word in (flag.removesuffix("s"), str(one))]
    return [flag] if value is True else [flag, str(value)]
