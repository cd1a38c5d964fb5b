"""A checkpoint's folder: its shards, its index, and which key lies where.

Nothing outside the folder is read: a name in the index is a plain file name, and a link leads
to a file of the same folder or, in the Hub's cache, to a blob of the same repository.
Knows neither models nor edits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abl_hub.edits.safetensors_file import StoredTensor, parse_opening, read_header
from abl_hub.errors import SourceError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The weights of one checkpoint."""

    folder: Path
    names: tuple[str, ...]
    """The shards' file names."""
    files: Mapping[str, Path]
    """Name → the file itself, not a link; that of an absent shard may not exist."""
    tensors: Mapping[str, StoredTensor]
    """Checkpoint key → where it lies; `StoredTensor.file` is one of `files`."""
    index: dict[str, Any] | None
    """As read; None where one file holds everything."""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class AbsentShard:
    """A shard that is not in the folder, of which the beginning is known.

    Args:
        file: where it lies while it is here.
        opening: its first bytes, the header to the end.
    """

    file: Path
    opening: bytes
    size_bytes: int

    def confirm(self) -> None:
        """The file is here now: hold it to its opening.

        Raises:
            SourceError: it is another one, or no whole safetensors file.
        """
        with self.file.open("rb") as opened:
            same = opened.read(len(self.opening)) == self.opening
        if not same or self.file.stat().st_size != self.size_bytes:
            raise SourceError(f"{self.file.name} is not the file whose header was read")
        read_header(self.file)


def open_shards(folder: Path, absent: Mapping[str, AbsentShard] | None = None) -> Shards:
    """Read the index and the headers of a checkpoint; no weights.

    Args:
        absent: shards that are not in the folder, by name.

    Raises:
        SourceError: no safetensors weights, or an index or a shard that is not what it says.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder")
    # transformers believes the single file where both are there.
    absent = absent or {}
    if SINGLE in absent or (folder / SINGLE).exists():
        index = None
        names: tuple[str, ...] = (SINGLE,)
    elif (folder / INDEX).exists():
        index = read_json(folder, INDEX)
        names = _shard_names(index)
    else:
        raise SourceError(
            f"{folder} has no safetensors weights",
            why=f"there is neither {SINGLE} nor {INDEX}",
            next_step="Give a model that is stored as safetensors",
        )
    tensors: dict[str, StoredTensor] = {}
    files: dict[str, Path] = {}
    size_bytes = 0
    for name in names:
        if name in absent:
            shard = absent[name]
            file, size = shard.file, shard.size_bytes
            stored = parse_opening(shard.opening, file, size)
        else:
            file = real_file(folder, name)
            size, stored = file.stat().st_size, read_header(file)
        files[name] = file
        size_bytes += size
        for tensor in stored:
            if tensor.key in tensors:
                raise SourceError(f"{tensor.key} is stored twice, the second time in {name}")
            tensors[tensor.key] = tensor
    if index is not None:
        _check_index(files, index, tensors)
    return Shards(
        folder=folder,
        names=names,
        files=files,
        tensors=tensors,
        index=index,
        size_bytes=size_bytes,
    )


def real_file(folder: Path, name: str) -> Path:
    """The regular file behind a name in `folder`, its links followed.

    Raises:
        SourceError: missing, not a regular file, or a link that leads out of the model's files.
    """
    home = folder.resolve()
    try:
        file = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise SourceError(
            f"{name} is missing from {folder}", next_step="Download the model again"
        ) from error
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
    if not any(file.is_relative_to(root) for root in roots):
        raise SourceError(
            f"{name} is a link that leads out of the model's folder",
            next_step="Replace the link by the file",
        )
    if not file.is_file():
        raise SourceError(f"{name} is not a regular file")
    return file


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from the folder.

    Raises:
        SourceError: missing, or not a JSON object.
    """
    file = real_file(folder, name)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise SourceError(f"{name} is not JSON", next_step="Download the model again") from error
    if not isinstance(content, dict):
        raise SourceError(f"{name} is not a JSON object", next_step="Download it again")
    return content


def _shard_names(index: dict[str, Any]) -> tuple[str, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{INDEX} has no weight_map", next_step="Download it again")
    for key, name in weight_map.items():
        if not _is_shard_name(name):
            raise SourceError(
                f"{INDEX} names a shard of {key!r} that is not a safetensors file of the folder",
                why=f"it says {str(name)[:80]!r}",
            )
    return tuple(sorted(set(weight_map.values())))


def _is_shard_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and name.isprintable()
        and not set(name) & set("/\\:")
        and not name.startswith(".")
        and len(name.encode()) < 256
    )


def _check_index(
    files: Mapping[str, Path], index: dict[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    weight_map: dict[str, str] = index["weight_map"]
    for key, name in weight_map.items():
        tensor = tensors.get(key)
        if tensor is None or tensor.file != files[name]:
            raise SourceError(
                f"{INDEX} says that {name} holds {key!r}, and it does not",
                next_step="Download the model again",
            )
