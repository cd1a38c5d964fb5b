"""Prompt sets: from a Hub data set or a file to an ordered, de-duplicated tuple with a digest.

Knows where prompts come from; nothing of splits or of what the prompts will show.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile

from abl_hub.errors import ContrastError, SourceError
from abl_hub.hub.bars import client_bars_silenced
from abl_hub.hub.failures import translated
from abl_hub.hub.named_sets import NAMED_SETS

# The default pair is resolved to a commit at every run and the commit is recorded: a later run can
# pin it by writing `@commit` after the name, as the record's recipe shows.
DEFAULT_POSITIVE = "mlabonne/harmful_behaviors:train#text"
DEFAULT_NEGATIVE = "mlabonne/harmless_alpaca:train#text"

COLUMNS = ("text", "prompt", "instruction", "goal", "question")
"""Where prompts are looked for, in this order, when no column is named."""
CATEGORY_COLUMNS = ("category", "categories", "type")
_AND = " + "
LARGEST_BYTES = 2 * 10**9

_HUB_SPEC = re.compile(
    r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)"
    r"(@(?P<revision>[^:#]+))?"
    r"(:((?P<config>[\w.-]+)/)?(?P<split>[\w.-]+))?"
    r"(#(?P<column>[^?]+))?"
    r"(\?(?P<where>[^=]+=.*))?"
)
_DATA_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".arrow")


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts in their order, without duplicates.

    Args:
        name: Hub id, or the file's name.
        revision: the data set's commit; None for a file.
        split, column: where they were found; split is None for a file.
        spec: what loads the same prompts again, each data set at its commit; None for a file.
        categories: one a prompt, where the data has a category column; None where a row has none.
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

    @property
    def category_of(self) -> dict[str, str]:
        """Prompt → its category; prompts without one are left out."""
        rows = zip(self.prompts, self.categories or (), strict=False)
        return {prompt: category for prompt, category in rows if category is not None}

    def __repr__(self) -> str:  # prompts may be harmful, and a repr ends up in logs
        return f"PromptSet({self.name!r}, {len(self.prompts)} prompts, {self.digest[:12]})"


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Rows as they were read, before anything is chosen of them."""

    name: str
    revision: str | None
    split: str | None
    columns: tuple[str, ...]
    read: Callable[[str], Sequence[object]]
    config: str | None = None


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
    spec = NAMED_SETS.get(spec, spec)
    if _AND in spec:
        return _together(
            [
                load_prompts(part, token=token, endpoint=endpoint, cache_dir=cache_dir)
                for part in spec.split(_AND)
            ]
        )
    path, _, column = spec.partition("#")
    file = Path(path).expanduser()
    if file.is_file():
        return _prompt_set(_file_table(file), column or None)
    match = _HUB_SPEC.fullmatch(spec)
    if match is None or file.suffix in _DATA_SUFFIXES:
        raise SourceError(
            f"There is no file {path}",
            next_step="Give a file of prompts, or a Hub data set like org/name:train#text",
        )
    repo, revision = match["repo"], match["revision"]
    with tempfile.TemporaryDirectory(prefix="abl-hub-prompts-") as scratch:
        table = _hub_table(
            repo, revision, match["config"], match["split"], token, endpoint, cache_dir, scratch
        )
        return _prompt_set(table, match["column"], match["where"])


def local_files(spec: str) -> tuple[Path, ...]:
    """The files of `spec`, there or not; the Hub's data sets are left out."""
    parts = NAMED_SETS.get(spec, spec).split(_AND)
    files = ((part, Path(part.partition("#")[0]).expanduser()) for part in parts)
    return tuple(
        file
        for part, file in files
        if file.is_file() or file.suffix in _DATA_SUFFIXES or not _HUB_SPEC.fullmatch(part)
    )


def is_local(spec: str) -> bool:
    """Whether `spec` names files only, so that loading it asks nobody."""
    return len(local_files(spec)) == len(NAMED_SETS.get(spec, spec).split(_AND))


def _prompt_set(table: _Table, column: str | None, where: str | None = None) -> PromptSet:
    chosen = _column(table, column)
    kept = _rows(table, where)
    values = table.read(chosen)
    prompts = [_prompt(table, row + 1, values[row]) for row in kept]
    if not prompts:
        raise ContrastError(f"{table.name} has no prompts" + (f" with {where}" if where else ""))
    category = _known(table, CATEGORY_COLUMNS)
    labels = table.read(category) if category else ()
    categories = [_label(labels[row]) for row in kept] if category else None
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


def _pinned(table: _Table, column: str, where: str | None) -> str | None:
    if table.revision is None:
        return None
    config = f"{table.config}/" if table.config else ""
    rows = f"?{where}" if where else ""
    return f"{table.name}@{table.revision}:{config}{table.split}#{column}{rows}"


def _rows(table: _Table, where: str | None) -> Sequence[int]:
    """The rows that are asked for, 0-based."""
    if where is None:
        return range(len(table.read(table.columns[0])))
    name, _, value = where.partition("=")
    if name not in table.columns:
        raise ContrastError(
            f"{table.name} has no column {name}", why=f"its columns are {', '.join(table.columns)}"
        )
    return [row for row, found in enumerate(table.read(name)) if str(found) == value]


def _known(table: _Table, names: Sequence[str]) -> str | None:
    """The first column with one of these names, in whatever case."""
    found = {column.lower(): column for column in reversed(table.columns)}
    return next((found[name] for name in names if name in found), None)


def _column(table: _Table, asked: str | None) -> str:
    if asked is None:
        found = _known(table, COLUMNS)
        if found is not None:
            return found
        if len(table.columns) == 1:
            return table.columns[0]
    elif asked in table.columns:
        return asked
    raise ContrastError(
        f"{table.name} has no column {asked}" if asked else f"{table.name}: which column?",
        why=f"its columns are {', '.join(table.columns)}",
        next_step=f"Name the column of the prompts: {table.name}#COLUMN",
    )


def _prompt(table: _Table, row: int, value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # a conversation of one turn
    if not isinstance(value, str):
        raise ContrastError(f"{table.name}: row {row} is {type(value).__name__}, not text")
    if not value.strip():
        raise ContrastError(f"{table.name}: row {row} is empty", next_step="Remove it")
    return value.strip()


def _label(value: object) -> str | None:
    return None if value is None else str(value).strip() or None


def _file_table(file: Path) -> _Table:
    readers: dict[str, Callable[[Path], Mapping[str, Sequence[object]]]] = {
        ".txt": _read_text,
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    if file.suffix not in readers:
        raise SourceError(
            f"{file} is not a file of prompts that can be read",
            next_step=f"Use one of {', '.join(readers)}",
        )
    try:
        columns = readers[file.suffix](file)
    except (ValueError, csv.Error) as error:  # of json, of UTF-8, and of Arrow
        raise ContrastError(f"{file} cannot be read", why=_first_line(error)) from error
    return _Table(
        name=file.name,
        revision=None,
        split=None,
        columns=tuple(columns),
        read=lambda name: columns[name],
    )


def _read_text(file: Path) -> Mapping[str, Sequence[object]]:
    return {"text": file.read_text(encoding="utf-8").splitlines()}


def _read_json_lines(file: Path) -> Mapping[str, Sequence[object]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return _as_columns([json.loads(line) for line in lines if line.strip()])


def _read_json(file: Path) -> Mapping[str, Sequence[object]]:
    document = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(document, dict):
        lists = {name: values for name, values in document.items() if isinstance(values, list)}
        if len({len(values) for values in lists.values()}) > 1:
            raise ValueError("its columns differ in length")
        return lists
    return _as_columns(document)


def _read_csv(file: Path) -> Mapping[str, Sequence[object]]:
    text = io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")
    return _as_columns(list(csv.DictReader(text, delimiter="\t" if file.suffix == ".tsv" else ",")))


def _read_parquet(file: Path) -> Mapping[str, Sequence[object]]:
    from pyarrow import parquet

    columns: dict[str, Sequence[object]] = parquet.read_table(file).to_pydict()
    return columns


def _as_columns(rows: object) -> Mapping[str, Sequence[object]]:
    """Columns of a list of objects, or of strings (then the column is "text")."""
    if not isinstance(rows, list):
        raise ValueError("it is not a list of prompts")
    if all(isinstance(row, str) for row in rows):
        return {"text": rows}
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its rows are not all objects")
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _hub_table(
    repo: str,
    revision: str | None,
    config: str | None,
    split: str | None,
    token: str | None,
    endpoint: str | None,
    cache_dir: Path | None,
    scratch: str,
) -> _Table:
    """A split of a Hub data set.

    The files are fetched by `huggingface_hub`, which takes an endpoint and a token as arguments,
    and read by `datasets` from the folder, which then needs no network, knows every layout of
    configurations and splits, and cannot run a loading script.
    """
    import datasets

    api = HfApi(endpoint=endpoint, token=token)
    inside = translated(
        repo, kind="dataset", revision=revision, endpoint=api.endpoint, missing=SourceError
    )
    with inside, client_bars_silenced():
        commit = api.dataset_info(repo, revision=revision).sha
        listed = api.list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=True)
        files = [file for file in listed if isinstance(file, RepoFile) and _is_data(file.path)]
        total = sum(file.size for file in files)
        if total > LARGEST_BYTES:
            raise SourceError(
                f"The data set {repo} is too large for a set of prompts",
                why=f"{total / 1e9:.1f} GB",
                next_step="Save the prompts that you need to a file and give that",
            )
        folder = snapshot_download(
            repo,
            repo_type="dataset",
            revision=commit,
            allow_patterns=[*(f"*{suffix}" for suffix in _DATA_SUFFIXES), "README.md"],
            cache_dir=cache_dir,
            token=token,
            endpoint=api.endpoint,
        )
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(folder, name=config, cache_dir=scratch, keep_in_memory=True)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"The data set {repo} cannot be read", why=_first_line(error)) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    found = split or ("train" if "train" in loaded or len(loaded) != 1 else next(iter(loaded)))
    if found not in loaded:
        raise SourceError(
            f"The data set {repo} has no split {found}",
            next_step=f"Choose one of {', '.join(loaded)}: {repo}:SPLIT",
        )
    data: Any = loaded[found]
    return _Table(
        name=repo,
        revision=commit,
        split=found,
        columns=tuple(data.column_names),
        read=lambda name: data[name][:],
        config=config,
    )


def _is_data(path: str) -> bool:
    return path.endswith(_DATA_SUFFIXES)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
