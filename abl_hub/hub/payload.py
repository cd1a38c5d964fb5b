"""The files of one publication: which they are, which must never be, and how they are told apart.

Knows file names, hashes and commit operations; does not talk to the Hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy
from huggingface_hub.hf_api import RepoFile

from abl_hub.errors import HubError

MANIFEST = ".abl-hub-files.json"
"""Lists what was published, so that a later push deletes its own leftovers and nothing else."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LARGE = (".safetensors",)


Operation = CommitOperationAdd | CommitOperationCopy


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One file: what it is, and how a commit gets it."""

    sha256: str
    size: int
    operation: Operation

    @classmethod
    def to_add(cls, path: str, content: str | bytes) -> Item:
        """A file to be sent: its path here, or its content."""
        operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
        info = operation.upload_info
        return cls(sha256=info.sha256.hex(), size=info.size, operation=operation)


class Payload:
    """What a repository is to hold: path → item, the manifest among them.

    Args:
        files: a folder (hidden files are left out), or path in the repository → file.
        token: the user's, which must not be among the files.
        ahead: files that the Hub has already and that need not be here.

    Raises:
        HubError: nothing to publish, a pickle, or the token.
    """

    def __init__(
        self,
        files: Path | Mapping[str, Path],
        *,
        token: str | None,
        ahead: Mapping[str, Item] | None = None,
    ) -> None:
        paths = _collect(files)
        _refuse_token(paths, token)
        self.items = {path: Item.to_add(path, str(file)) for path, file in paths.items()}
        self.items |= ahead or {}
        manifest = json.dumps({"files": sorted(self.items)}, indent=1).encode() + b"\n"
        self.items[MANIFEST] = Item.to_add(MANIFEST, manifest)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self.items))

    @property
    def copied(self) -> tuple[str, ...]:
        """Paths that the Hub copies by itself."""
        return tuple(
            path
            for path in self.paths
            if isinstance(self.items[path].operation, CommitOperationCopy)
        )

    @property
    def size_bytes(self) -> int:
        return sum(item.size for item in self.items.values())

    def text(self, path: str) -> str | None:
        """The content of a text file; None: it is not there."""
        if path not in self.items:
            return None
        operation = self.items[path].operation
        assert isinstance(operation, CommitOperationAdd)  # only weights are copied
        with operation.as_file() as opened:
            return opened.read().decode("utf-8")

    def copy(self, path: str, operation: CommitOperationCopy) -> None:
        """Let the Hub copy this file."""
        self.items[path] = replace(self.items[path], operation=operation)

    def changes(self, remote: Mapping[str, RepoFile]) -> list[str]:
        """Paths that `remote` does not hold with this content, sorted."""
        return [path for path in self.paths if not self.is_in(remote, path)]

    def is_in(self, remote: Mapping[str, RepoFile], path: str) -> bool:
        """Whether `remote` holds this file as it is."""
        return path in remote and _same(self.items[path], remote[path])


def is_large(path: str) -> bool:
    """Whether a file is uploaded ahead of the commit, by itself."""
    return path.endswith(_LARGE)


def _collect(files: Path | Mapping[str, Path]) -> dict[str, Path]:
    """Path in the repository → file.

    Raises:
        HubError: nothing to publish, or a file that must not be.
    """
    if isinstance(files, Path):
        relative = {path.relative_to(files): path for path in files.rglob("*") if path.is_file()}
        found = {
            inside.as_posix(): path
            for inside, path in relative.items()
            if not any(part.startswith(".") for part in inside.parts)
        }
    else:
        found = dict(files)
    if not found:
        raise HubError(f"There is nothing to publish in {files}")
    pickles = sorted(path for path in found if path.endswith(_PICKLES))
    if pickles:
        raise HubError(
            f"{pickles[0]} is not published",
            why="reading a pickle can run code",
            next_step="Save the weights as safetensors",
        )
    return found


def _refuse_token(files: Mapping[str, Path], token: str | None) -> None:
    """Refuse files that hold the user's token. Weights are not searched."""
    if not token:
        return
    for path, file in files.items():
        if not is_large(path) and token.encode() in file.read_bytes():
            raise HubError(
                f"{path} is not published",
                why="it holds your Hub token",
                next_step="Remove it from the file, and renew the token if the file was shared",
            )


def _same(item: Item, remote: RepoFile) -> bool:
    """Whether a file on the Hub has this content: by SHA-256 for LFS, by git's hash otherwise."""
    if item.size != remote.size:
        return False
    if remote.lfs is not None:
        return item.sha256 == remote.lfs.sha256
    if isinstance(item.operation, CommitOperationCopy):
        return False
    with item.operation.as_file() as opened:
        content = opened.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id
