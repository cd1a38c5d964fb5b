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

from abl_hub.edits.safetensors_file import StoredTensor, read_header
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
    tensors: Mapping[str, StoredTensor]
    """Checkpoint key → where it lies; `StoredTensor.file` is the file itself, not a link."""
    index: dict[str, Any] | None
    """As read; None where one file holds everything."""
    size_bytes: int


def open_shards(folder: Path) -> Shards:
    """Read the index and the headers of a checkpoint; no weights.

    Raises:
        SourceError: no safetensors weights, or an index or a shard that is not what it says.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder")
    # transformers believes the single file where both are there.
    if (folder / SINGLE).exists():
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
    size_bytes = 0
    for name in names:
        file = real_file(folder, name)
        size_bytes += file.stat().st_size
        for tensor in read_header(file):
            if tensor.key in tensors:
                raise SourceError(f"{tensor.key} is stored twice, the second time in {name}")
            tensors[tensor.key] = tensor
    if index is not None:
        _check_index(folder, index, tensors)
    return Shards(folder=folder, names=names, tensors=tensors, index=index, size_bytes=size_bytes)


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
        raise SourceError(f"{name} is not valid JSON", next_step="Download it again") from error
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


def _check_index(folder: Path, index: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    weight_map: dict[str, str] = index["weight_map"]
    files = {name: real_file(folder, name) for name in set(weight_map.values())}
    for key, name in weight_map.items():
        tensor = tensors.get(key)
        if tensor is None or tensor.file != files[name]:
            raise SourceError(
                f"{INDEX} says that {name} holds {key!r}, and it does not",
                next_step="Download the model again",
            )
