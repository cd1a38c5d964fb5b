"""Prompt sets: from a Hub data set or a file to an ordered, de-duplicated tuple with a digest.

Knows where prompts come from; nothing of splits or of what the prompts will show.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abl_hub.errors import ContrastError, SourceError
from abl_hub.hub.data_sets import DATA_SUFFIXES, hub_table
from abl_hub.hub.named_sets import NAMED_SETS
from abl_hub.hub.prompt_table import Table, file_table

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
_AND = " + "

_HUB_SPEC = re.compile(
    r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)"
    r"(@(?P<revision>[^:#?]+))?"
    r"(:((?P<config>[\w.-]+)/)?(?P<split>[\w.-]+))?"
    r"(#(?P<column>[^?]+))?"
    r"(\?(?P<where>[^=]+=.*))?"
)


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
        duplicates: how many repeated prompts were left out.
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
            their order, are joined by " + ".

    Raises:
        SourceError: no such file, data set, revision, configuration or split.
        ContrastError: no such column, an empty prompt, no prompts, or data that cannot be read.
        HubError: the Hub could not be reached or refused.
    """
    parts = _parts(NAMED_SETS.get(spec, spec))
    if len(parts) > 1:
        return _together(
            [
                load_prompts(part, token=token, endpoint=endpoint, cache_dir=cache_dir)
                for part in parts
            ]
        )
    [spec] = parts
    found = _file(spec)
    if found is not None:
        return _prompt_set(file_table(found[0]), found[1])
    match = _hub_spec(spec)
    if match is None:
        raise SourceError(
            f"There is no file {spec[:_LONGEST_SHOWN]}",
            why="it is a folder" if _is_folder(spec) else "",
            next_step="Give a file of prompts, or a Hub data set like org/name:train#text",
        )
    repo, revision = match["repo"], match["revision"]
    with tempfile.TemporaryDirectory(prefix="abl-hub-prompts-") as scratch:
        table = hub_table(
            repo, revision, match["config"], match["split"], token, endpoint, cache_dir, scratch
        )
        return _prompt_set(table, match["column"], match["where"])


def local_files(spec: str) -> tuple[Path, ...]:
    """The files of `spec`, there or not; the Hub's data sets are left out."""
    parts = _parts(NAMED_SETS.get(spec, spec))
    found = ((part, _file(part)) for part in parts)
    return tuple(
        file[0] if file else Path(part.partition("#")[0]).expanduser()
        for part, file in found
        if file or not _hub_spec(part)
    )


def with_absolute_files(spec: str) -> str:
    """`spec` with the absolute paths of its files."""
    if spec in NAMED_SETS:
        return spec
    parts = []
    for part in _parts(spec):
        found = _file(part)
        if found is not None:
            column = f"#{found[1]}" if found[1] else ""
            part = f"{found[0].absolute()}{column}"
        parts.append(part)
    return _AND.join(parts)


def is_local(spec: str) -> bool:
    """Whether `spec` names files only, so that loading it asks nobody."""
    return len(local_files(spec)) == len(_parts(NAMED_SETS.get(spec, spec)))


def _parts(spec: str) -> list[str]:
    """What " + " joins; names of files and values behind "?" may hold it too."""
    parts: list[str] = []
    for piece in spec.split(_AND):
        longer = _AND.join((*parts[-1:], piece))
        own = piece in NAMED_SETS or _file(piece) or _hub_spec(piece)
        if parts and (_file(longer) or (not own and "?" in parts[-1] and _hub_spec(longer))):
            parts[-1] = longer
        else:
            parts.append(piece)
    return [spec] if _file(spec) else parts


def _file(spec: str) -> tuple[Path, str | None] | None:
    """The file that `spec` names, and the column; None where there is no such file."""
    path, _, column = spec.rpartition("#")
    # A column's name holds no " + ": what follows is the next file.
    for name, asked in ((spec, None), *(() if _AND in column else ((path, column or None),))):
        try:
            file = Path(name).expanduser()
            if file.is_file():
                return file, asked
        except (OSError, ValueError, RuntimeError):  # no name of a file, or nobody's home
            continue
    return None


def _is_folder(spec: str) -> bool:
    try:
        return Path(spec).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # no name of a file, or nobody's home
        return False


def _hub_spec(spec: str) -> re.Match[str] | None:
    """The parts of a data set's name; None where it can only be a file."""
    match = _HUB_SPEC.fullmatch(spec)
    return None if match and match["repo"].endswith(DATA_SUFFIXES) else match


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
        first_rows.setdefault(prompt, row)
    unique = tuple(first_rows)
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
            first.setdefault(prompt, (number, row))
    unique = tuple(first)
    labelled = all(part.categories is not None for part in parts)
    specs = [part.spec for part in parts]
    return PromptSet(
        name=_AND.join(part.name for part in parts),
        revision=None,
        split=None,
        column=_AND.join(part.column for part in parts),
        prompts=unique,
        categories=tuple((parts[n].categories or ())[row] for n, row in first.values())
        if labelled
        else None,
        duplicates=sum(part.duplicates + len(part.prompts) for part in parts) - len(unique),
        digest=_digest(unique),
        spec=_AND.join(spec for spec in specs if spec) if all(specs) else None,
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
