"""Tables that prompts are chosen from, and the files that hold them.

Knows formats of files; nothing of prompts, and nothing of the Hub.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abl_hub.errors import ContrastError, SourceError


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as they were read, before anything is chosen of them."""

    name: str
    revision: str | None
    split: str | None
    columns: tuple[str, ...]
    read: Callable[[str], Sequence[object]]
    config: str | None = None


def file_table(file: Path) -> Table:
    readers: dict[str, Callable[[Path], Mapping[str, Sequence[object]]]] = {
        ".txt": _read_text,
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    suffix = file.suffix.lower()
    if suffix not in readers:
        raise SourceError(
            f"{file} is not a file of prompts that can be read",
            next_step=f"Use one of {', '.join(readers)}",
        )
    try:
        columns = readers[suffix](file)
    except UnicodeDecodeError as error:
        raise ContrastError(
            f"{file} cannot be read",
            why="it is not text in UTF-8",
            next_step="Save it again with that encoding",
        ) from error
    except (ValueError, csv.Error, OSError, RecursionError) as error:  # of Arrow and json, too
        raise ContrastError(
            f"{file} cannot be read", why=first_line(error), next_step="Repair the file"
        ) from error
    return Table(
        name=file.name,
        revision=None,
        split=None,
        columns=tuple(columns),
        read=lambda name: columns[name],
    )


def _read_text(file: Path) -> Mapping[str, Sequence[object]]:
    return {"text": _lines(file)}


def _read_json_lines(file: Path) -> Mapping[str, Sequence[object]]:
    rows = []
    for number, line in enumerate(_lines(file), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON ({error.msg})") from error
    return _as_columns(rows)


def _lines(file: Path) -> list[str]:
    """What lies between line feeds: `splitlines` would part a prompt at U+2028 or a form feed."""
    text = file.read_text(encoding="utf-8-sig")
    return text.removesuffix("\n").split("\n") if text else []


def _read_json(file: Path) -> Mapping[str, Sequence[object]]:
    document = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(document, dict):
        lists = {name: values for name, values in document.items() if isinstance(values, list)}
        if len({len(values) for values in lists.values()}) > 1:
            raise ValueError("its columns differ in length")
        return lists
    return _as_columns(document)


def _read_csv(file: Path) -> Mapping[str, Sequence[object]]:
    text = io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")
    return _as_columns(
        list(csv.DictReader(text, delimiter="\t" if file.suffix.lower() == ".tsv" else ","))
    )


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


def first_line(error: BaseException) -> str:
    """What an error says, shortly."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
