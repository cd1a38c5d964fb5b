"""The files of one publication: which they are, which must never be, and how they are told apart.

Knows file names, hashes and commit operations; does not talk to the Hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd
from huggingface_hub.hf_api import RepoFile

from abl_hub.errors import HubError

MANIFEST = ".abl-hub-files.json"
"""Lists what was published, so that a later push deletes its own leftovers and nothing else."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LARGE = (".safetensors",)


class Payload:
    """What a repository is to hold: path → operation that adds it, the manifest among them.

    Args:
        files: a folder (hidden files are left out), or path in the repository → file.
        token: the user's, which must not be among the files.
        ahead: operations on files that were uploaded already and are no longer here.

    Raises:
        HubError: nothing to publish, a pickle, or the token.
    """

    def __init__(
        self,
        files: Path | Mapping[str, Path],
        *,
        token: str | None,
        ahead: Mapping[str, CommitOperationAdd] | None = None,
    ) -> None:
        paths = _collect(files)
        _refuse_token(paths, token)
        self.operations = {
            path: CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file))
            for path, file in paths.items()
        }
        self.operations |= ahead or {}
        manifest = json.dumps({"files": sorted(self.operations)}, indent=1).encode() + b"\n"
        self.operations[MANIFEST] = CommitOperationAdd(MANIFEST, manifest)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self.operations))

    @property
    def size_bytes(self) -> int:
        return sum(self.size_of(path) for path in self.operations)

    def size_of(self, path: str) -> int:
        return self.operations[path].upload_info.size

    def text(self, path: str) -> str | None:
        """The content of a text file; None: it is not there."""
        if path not in self.operations:
            return None
        with self.operations[path].as_file() as opened:
            return opened.read().decode("utf-8")

    def changes(self, remote: Mapping[str, RepoFile]) -> list[str]:
        """Paths that `remote` does not hold with this content, sorted."""
        return [path for path in self.paths if not self.is_in(remote, path)]

    def is_in(self, remote: Mapping[str, RepoFile], path: str) -> bool:
        """Whether `remote` holds this file as it is."""
        return path in remote and _same(self.operations[path], remote[path])


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


def _same(operation: CommitOperationAdd, remote: RepoFile) -> bool:
    """Whether a file on the Hub has this content: by SHA-256 for LFS, by git's hash otherwise."""
    info = operation.upload_info
    if info.size != remote.size:
        return False
    if remote.lfs is not None:
        return info.sha256.hex() == remote.lfs.sha256
    with operation.as_file() as opened:
        content = opened.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id
