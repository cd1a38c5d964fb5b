"""Prompt sets: from a Hub data set or a file to an ordered, de-duplicated tuple with a digest.

Knows where prompts come from; nothing of splits or of what the prompts will show.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abl_hub.errors import ContrastError, SourceError
from abl_hub.hub.data_sets import hub_table
from abl_hub.hub.named_sets import NAMED_SETS
from abl_hub.hub.prompt_spec import (
    AND,
    APART,
    PARTS,
    file_of,
    hub_spec,
    is_folder,
    joined,
    portions,
)
from abl_hub.hub.prompt_table import Table, file_table
from abl_hub.sameness import plain

# The default pair is resolved to a commit at every run and the commit is recorded: a later run can
# pin it by writing `@commit` after the name, as the record's recipe shows.
DEFAULT_POSITIVE = "mlabonne/harmful_behaviors:train#text"
DEFAULT_NEGATIVE = "mlabonne/harmless_alpaca:train#text"

COLUMNS = ("text", "prompt", "instruction", "goal", "question")
"""Where prompts are looked for, in this order, when no column is named."""
CATEGORY_COLUMNS = ("category", "categories", "type")
_MOST_CATEGORIES = 50
_LONGEST_CATEGORY = 60
_LONGEST_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts in their order, without duplicates.

    Args:
        name: Hub id, or the file's name.
        revision: the data set's commit; None for a file.
        split, column: where they were found; split is None for a file.
        spec: what loads the same prompts again, each data set at its commit; None for a file.
        categories: one a prompt, where the data has a category column; None where a row has none.
        ignored: why a column of that name was not taken for one.
        sizes: how many of the prompts, in their order, are to train, to validate and to test, where
            the set says so.
        duplicates: how many repeated prompts were left out, whatever their case and spacing.
        digest: SHA-256 over the prompts.
    """

    name: str
    revision: str | None
    split: str | None
    column: str
    prompts: tuple[str, ...]
    categories: tuple[str | None, ...] | None
    duplicates: int
    digest: str
    spec: str | None = None
    ignored: str | None = None
    sizes: tuple[int, int, int] | None = None

    @property
    def part_of(self) -> dict[str, str]:
        """Prompt → "train", "validation" or "test"; empty where the set leaves that open."""
        sizes = zip(PARTS, self.sizes or (), strict=False)
        names = [name for name, size in sizes for _ in range(size)]
        return dict(zip(self.prompts, names, strict=False))

    @property
    def category_of(self) -> dict[str, str]:
        """Prompt → its category; prompts without one are left out."""
        rows = zip(self.prompts, self.categories or (), strict=False)
        return {prompt: category for prompt, category in rows if category is not None}

    def __repr__(self) -> str:  # prompts may be harmful, and a repr ends up in logs
        return f"PromptSet({self.name!r}, {len(self.prompts)} prompts, {self.digest[:12]})"


def load_prompts(
    spec: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> PromptSet:
    """Load the prompts that `spec` names.

    Args:
        spec: a name of `abl_hub.hub.named_sets`; a file,
            `PATH.{txt,jsonl,json,csv,tsv,parquet}[#COLUMN]`; or a Hub data set,
            `ORG/NAME[@REVISION][:[CONFIG/]SPLIT][#COLUMN][?COLUMN=VALUE]`. A file that exists wins.
            Without a column, the first of `COLUMNS` that is there; without a split, "train", or the
            only one; `?` keeps the rows that have the value. Several of these, put together in
            their order, are joined by " + ". Three of those, joined by " | ", are what to train, to
            validate and to test on; what a later one of them holds is left out of an earlier one.

    Raises:
        SourceError: no such file, data set, revision, configuration or split.
        ContrastError: no such column, an empty prompt, no prompts, or data that cannot be read.
        HubError: the Hub could not be reached or refused.
    """

    def loaded(specs: Sequence[str]) -> list[PromptSet]:
        own = next((one for one in specs if len(portions(NAMED_SETS.get(one, one))) > 1), None)
        if own is not None:
            raise ContrastError(
                f"{own} brings its own splits", why="nothing can be put together with it"
            )
        return [
            load_prompts(one, token=token, endpoint=endpoint, cache_dir=cache_dir) for one in specs
        ]

    spec = NAMED_SETS.get(spec, spec)
    apart = portions(spec)
    if len(apart) > 1:
        return _apart(loaded(apart))
    parts = joined(spec)
    if len(parts) > 1:
        return _together(loaded(parts))
    [spec] = parts
    found = file_of(spec)
    if found is not None:
        return _prompt_set(file_table(found[0]), found[1])
    match = hub_spec(spec)
    if match is None:
        raise SourceError(
            f"There is no file {spec[:_LONGEST_SHOWN]}",
            why="it is a folder" if is_folder(spec) else "",
            next_step="Give a file of prompts, or a Hub data set like org/name:train#text",
        )
    repo, revision = match["repo"], match["revision"]
    with tempfile.TemporaryDirectory(prefix="abl-hub-prompts-") as scratch:
        table = hub_table(
            repo, revision, match["config"], match["split"], token, endpoint, cache_dir, scratch
        )
        return _prompt_set(table, match["column"], match["where"])


def _prompt_set(table: Table, column: str | None, where: str | None = None) -> PromptSet:
    chosen = _column(table, column)
    kept = _rows(table, where)
    values = table.read(chosen)
    prompts = [_prompt(table, row + 1, values[row]) for row in kept]
    if not prompts:
        raise ContrastError(
            f"{table.name} has no prompts" + (f" with {where}" if where else ""),
            next_step="Give a file or a data set that has some",
        )
    categories, ignored = _categories(table, chosen, kept, prompts)
    first_rows: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        first_rows.setdefault(plain(prompt), row)
    unique = tuple(prompts[row] for row in first_rows.values())
    return PromptSet(
        spec=_pinned(table, chosen, where),
        name=table.name,
        revision=table.revision,
        split=table.split,
        column=chosen,
        prompts=unique,
        categories=tuple(categories[r] for r in first_rows.values()) if categories else None,
        duplicates=len(prompts) - len(unique),
        digest=_digest(unique),
        ignored=ignored,
    )


def _together(parts: Sequence[PromptSet]) -> PromptSet:
    """Several sets as one; what a later one repeats is left out."""
    first: dict[str, tuple[int, int]] = {}
    for number, part in enumerate(parts):
        for row, prompt in enumerate(part.prompts):
            first.setdefault(plain(prompt), (number, row))
    return _joined(parts, list(first.values()), AND)


def _apart(sets: Sequence[PromptSet]) -> PromptSet:
    """What to train, to validate and to test on, as one set; what a later one holds, none before
    it does."""
    kept: list[list[tuple[int, int]]] = []
    later: set[str] = set()
    for number, portion in reversed(list(enumerate(sets))):
        keys = [plain(prompt) for prompt in portion.prompts]
        kept.insert(0, [(number, row) for row, key in enumerate(keys) if key not in later])
        later |= set(keys)
    joined = _joined(sets, [place for places in kept for place in places], APART)
    train, validation, test = map(len, kept)
    return replace(joined, sizes=(train, validation, test))


def _joined(
    parts: Sequence[PromptSet], places: Sequence[tuple[int, int]], between: str
) -> PromptSet:
    """The prompts at `places` (part, row), as one set."""
    prompts = tuple(parts[number].prompts[row] for number, row in places)
    labelled = all(part.categories is not None for part in parts)
    specs = [part.spec for part in parts]
    return PromptSet(
        name=between.join(part.name for part in parts),
        revision=None,
        split=None,
        column=between.join(part.column for part in parts),
        prompts=prompts,
        categories=tuple((parts[number].categories or ())[row] for number, row in places)
        if labelled
        else None,
        duplicates=sum(part.duplicates + len(part.prompts) for part in parts) - len(prompts),
        digest=_digest(prompts),
        spec=between.join(spec for spec in specs if spec) if all(specs) else None,
    )


def _digest(prompts: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(prompts, ensure_ascii=False).encode()).hexdigest()


def _pinned(table: Table, column: str, where: str | None) -> str | None:
    if table.revision is None:
        return None
    config = f"{table.config}/" if table.config else ""
    rows = f"?{where}" if where else ""
    return f"{table.name}@{table.revision}:{config}{table.split}#{column}{rows}"


def _rows(table: Table, where: str | None) -> Sequence[int]:
    """The rows that are asked for, 0-based."""
    if where is None:
        return range(len(table.read(table.columns[0])))
    name, _, value = where.partition("=")
    if name not in table.columns:
        raise ContrastError(
            f"{table.name} has no column {name}", why=f"its columns are {', '.join(table.columns)}"
        )
    return [row for row, found in enumerate(table.read(name)) if str(found) == value]


def _known(table: Table, names: Sequence[str]) -> str | None:
    """The first column with one of these names, in whatever case."""
    found = {column.lower(): column for column in reversed(table.columns)}
    return next((found[name] for name in names if name in found), None)


def _column(table: Table, asked: str | None) -> str:
    if asked is None:
        found = _known(table, COLUMNS)
        if found is not None:
            return found
        if len(table.columns) == 1:
            return table.columns[0]
    elif asked in table.columns:
        return asked
    raise ContrastError(
        f"{table.name} has no column {asked}"
        if asked
        else f"{table.name} does not say which column holds the prompts",
        why=f"its columns are {', '.join(table.columns)}",
        next_step=f"Name the column of the prompts: {table.name}#COLUMN",
    )


def _prompt(table: Table, row: int, value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # a conversation of one turn
    if not isinstance(value, str):
        kind = "empty" if value is None else f"{type(value).__name__}, not text"
        raise ContrastError(
            f"{table.name}: row {row} is {kind}",
            next_step=f"Remove it, or name the column of the prompts: {table.name}#COLUMN",
        )
    if not value.strip():
        raise ContrastError(f"{table.name}: row {row} is empty", next_step="Remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ContrastError(
            f"{table.name}: row {row} is not text", why="it holds half of a character"
        ) from error
    return value.strip()


def _categories(
    table: Table, chosen: str, kept: Sequence[int], prompts: Sequence[str]
) -> tuple[list[str | None] | None, str | None]:
    """The rows' categories, and why a column of that name is not taken for them.

    They reach records and cards, which hold no prompts.
    """
    column = _known(table, CATEGORY_COLUMNS)
    if column is None or column == chosen:
        return None, None
    labels = table.read(column)
    found = [_label(labels[row]) for row in kept]
    values = {label for label in found if label is not None}
    if len(values) > _MOST_CATEGORIES:
        return None, f"{len(values)} different values"
    if any(len(value) > _LONGEST_CATEGORY for value in values):
        return None, "sentences"
    return (None, "prompts") if values & set(prompts) else (found, None)


def _label(value: object) -> str | None:
    if value is None:
        return None
    return str(value).strip().encode(errors="replace").decode() or None
