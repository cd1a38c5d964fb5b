"""From a Hub id or a folder to a pinned `Source`: safetensors, tokenizer, config, licence; no more.

Knows which files of a repository make a model, and fetches only those: never a pickle, never code
unless it is asked for. Does not open a tensor.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils.tqdm import tqdm as client_tqdm

from abl_hub.errors import SourceError
from abl_hub.hub.bars import client_bars_silenced
from abl_hub.hub.failures import translated
from abl_hub.hub.licence import Licence, is_licence_file, read_licence
from abl_hub.progress import SILENT, Advance, Progress

CONFIG = "config.json"
README = "README.md"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_COMPANIONS = (
    CONFIG,
    README,
    "generation_config.json",
    "tokenizer.*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_NEVER = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".npy",
    ".npz",
    ".gguf",
    ".h5",
    ".msgpack",
)
"""Formats that may run code when they are read, or that nothing here reads."""
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a source. `sha256` is None where it is small and on the Hub."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's files on this machine, pinned.

    Args:
        name: as the user gave it.
        repo: Hub id; None for a local folder.
        revision: as the user gave it.
        commit: what it resolved to; None for a local folder.
        folder: where the files are. It may hold other files: only `files` belong to the source.
        files: relative to `folder`, sorted; every .safetensors has its SHA-256.
        licence: from the card.
    """

    name: str
    repo: str | None
    revision: str | None
    commit: str | None
    folder: Path
    files: tuple[SourceFile, ...]
    licence: Licence


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """What `resolve_source` would fetch.

    Args:
        config_folder: where config.json is now (downloaded for this, with code if asked for).
        weight_bytes: bytes of safetensors.
        download_files, download_bytes: what is not on this machine yet.
    """

    name: str
    repo: str | None
    revision: str | None
    commit: str | None
    config_folder: Path
    files: tuple[SourceFile, ...]
    weight_bytes: int
    download_files: int
    download_bytes: int


def resolve_source(
    source: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> Source:
    """Pin `source` and have its files on this machine.

    Args:
        source: Hub id (`org/model`) or local folder; an existing folder wins.
        trust_remote_code: also fetch the repository's *.py files.

    Raises:
        SourceError: not there, not open to the token, no such revision, no safetensors, no
            config.json, an index that names files that are not there.
        HubError: the Hub could not be reached or refused.
    """
    folder = _local_folder(source, revision)
    if folder is not None:
        return _local_source(source, folder, None, None, None, trust_remote_code, progress)
    if constants.is_offline_mode():
        return _cached_source(source, revision, cache_dir, trust_remote_code, progress)
    remote = _Remote(
        repo=source, revision=revision, token=token, endpoint=endpoint, cache_dir=cache_dir
    )
    files = remote.select(trust_remote_code)
    folder = remote.download(files, progress)
    return Source(
        name=source,
        repo=source,
        revision=revision,
        commit=remote.commit,
        folder=folder,
        files=tuple(_with_digest(file, folder) for file in files),
        licence=_licence(folder, [file.path for file in files], progress),
    )


def plan_source(
    source: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
) -> SourcePlan:
    """What `resolve_source` would fetch; downloads config.json and the shards' index at most.

    Raises:
        SourceError, HubError: as `resolve_source` would.
    """
    folder = _local_folder(source, revision)
    if folder is not None or constants.is_offline_mode():
        resolved = resolve_source(
            source, revision=revision, cache_dir=cache_dir, trust_remote_code=trust_remote_code
        )
        commit, config_folder, files = resolved.commit, resolved.folder, resolved.files
        absent: tuple[SourceFile, ...] = ()
    else:
        remote = _Remote(
            repo=source, revision=revision, token=token, endpoint=endpoint, cache_dir=cache_dir
        )
        files = remote.select(trust_remote_code)
        described = [f for f in files if f.path == CONFIG or f.path.endswith(".py")]
        commit, config_folder = remote.commit, remote.download(described, SILENT)
        absent = tuple(file for file in files if not remote.has(file))
    return SourcePlan(
        name=source,
        repo=None if folder is not None else source,
        revision=revision,
        commit=commit,
        config_folder=config_folder,
        files=files,
        weight_bytes=sum(f.size for f in files if f.path.endswith(".safetensors")),
        download_files=len(absent),
        download_bytes=sum(file.size for file in absent),
    )


class _Remote:
    """A model repository on the Hub, at one commit."""

    def __init__(
        self,
        *,
        repo: str,
        revision: str | None,
        token: str | None,
        endpoint: str | None,
        cache_dir: Path | None,
    ) -> None:
        self.repo, self.revision, self.cache_dir = repo, revision, cache_dir
        self.api = HfApi(endpoint=endpoint, token=token)
        with self._translated():
            commit = self.api.model_info(repo, revision=revision).sha
            if commit is None:
                raise SourceError(f"The Hub gave no commit for {repo}")
            # Lets the client note in its cache what the revision meant, for runs without a network.
            self.api.resolve_revision(repo, revision=revision, cache_dir=cache_dir)
            listed = self.api.list_repo_tree(repo, recursive=True, revision=commit)
            self.files = {
                file.path: SourceFile(
                    path=file.path, size=file.size, sha256=file.lfs.sha256 if file.lfs else None
                )
                for file in listed
                if isinstance(file, RepoFile)
            }
        self.commit = commit

    def select(self, trust_remote_code: bool) -> tuple[SourceFile, ...]:
        def read(path: str) -> bytes:
            return (self.download([self.files[path]], SILENT) / path).read_bytes()

        chosen = _select(self.repo, self.files, read, trust_remote_code)
        return tuple(self.files[path] for path in chosen)

    def has(self, file: SourceFile) -> bool:
        """Whether a file is in the cache already."""
        found = try_to_load_from_cache(
            self.repo, file.path, cache_dir=self.cache_dir, revision=self.commit
        )
        return isinstance(found, str)

    def download(self, files: Sequence[SourceFile], progress: Progress) -> Path:
        """Fetch `files` one by one; the snapshot's folder. What was fetched before is kept."""
        folder: Path | None = None
        total = sum(file.size for file in files)
        with client_bars_silenced(), progress.stage("Downloading", total) as advance:
            for file in files:
                counted = _Counted(advance, file.size)
                with self._translated():
                    path = self.api.hf_hub_download(
                        self.repo,
                        file.path,
                        revision=self.commit,
                        cache_dir=self.cache_dir,
                        tqdm_class=counted.bar_class(),
                    )
                counted.finish()
                folder = Path(path.removesuffix(file.path))
        if folder is None:
            raise SourceError(f"{self.repo} has no files to download")
        return folder

    def _translated(self) -> AbstractContextManager[None]:
        return translated(
            self.repo,
            revision=self.revision,
            endpoint=self.api.endpoint,
            missing=SourceError,
        )


class _Counted:
    """Turns the client's progress on one file into ours: every byte once, cached ones too."""

    def __init__(self, advance: Advance, size: int) -> None:
        self.advance, self.left = advance, size

    def add(self, count: int) -> None:
        count = max(0, min(count, self.left))
        self.left -= count
        self.advance(count)

    def finish(self) -> None:
        self.add(self.left)

    def bar_class(self) -> type[client_tqdm]:
        counted = self

        class Bar(client_tqdm):
            def update(self, n: float | None = 1) -> bool | None:
                counted.add(int(n or 0))
                return None

        return Bar


def _select(
    name: str, paths: Collection[str], read: Callable[[str], bytes], trust_remote_code: bool
) -> tuple[str, ...]:
    """The files of a repository that make the model, sorted.

    Raises:
        SourceError: no config.json, no safetensors, or an index that is not one.
    """
    if CONFIG not in paths:
        raise SourceError(
            f"{name} has no {CONFIG}",
            why="it is not a transformers model"
            + (", but an adapter" if "adapter_config.json" in paths else ""),
            next_step="Give the base model of the adapter"
            if "adapter_config.json" in paths
            else "Give the repository or folder of the model itself",
        )
    weights = _weights(name, paths, read)
    companions = [
        path
        for path in paths
        if (
            not path.endswith((".safetensors", *_NEVER))
            and (is_licence_file(path) or any(_is(path, pattern) for pattern in _COMPANIONS))
        )
        or (trust_remote_code and path.endswith(".py"))
    ]
    return tuple(sorted({*weights, *companions}))


def _weights(name: str, paths: Collection[str], read: Callable[[str], bytes]) -> tuple[str, ...]:
    """The top-level weights that transformers would load: one file, or an index and its shards."""
    if SINGLE in paths:
        return (SINGLE,)
    if INDEX not in paths:
        found = sorted(
            path
            for path in paths
            if path.endswith((".safetensors", ".bin", ".pth", ".pt", ".gguf"))
        )
        shown = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        raise SourceError(
            f"{name} has no safetensors weights that transformers would load",
            why=f"there is neither {SINGLE} nor {INDEX}; found {shown or 'no weights at all'}",
            next_step="Convert the model with `save_pretrained` first; pickles are never read",
        )
    try:
        shards = set(json.loads(read(INDEX))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(f"{name}: {INDEX} is not an index of shards") from error
    strange = sorted(
        str(shard) for shard in shards if shard not in paths or not _is_plain_shard(shard)
    )
    if strange or not shards:
        raise SourceError(
            f"{name} is incomplete",
            why=f"{INDEX} names {', '.join(strange[:3]) or 'no shard'}, which is not there as a "
            "safetensors file",
            next_step="Download or upload the model again",
        )
    return (INDEX, *sorted(shards))


def _is_plain_shard(name: object) -> bool:
    return isinstance(name, str) and "/" not in name and name.endswith(".safetensors")


def _is(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern)


def _local_folder(source: str, revision: str | None) -> Path | None:
    """The folder that `source` names; None when it must be a Hub id.

    Raises:
        SourceError: neither, or a folder with a revision.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise SourceError(
                f"{source} is a local folder",
                why="it has no revisions",
                next_step="Drop --revision",
            )
        return folder.resolve()
    if _HUB_ID.fullmatch(source):
        return None
    raise SourceError(
        f"There is no folder {source}",
        why="it is a file" if folder.exists() else "",
        next_step="Give a folder with a model, or a Hub id like org/model",
    )


def _local_source(
    name: str,
    folder: Path,
    repo: str | None,
    revision: str | None,
    commit: str | None,
    trust_remote_code: bool,
    progress: Progress,
) -> Source:
    """A source whose files are all here: named by their SHA-256."""
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    chosen = _select(name, present, lambda path: (folder / path).read_bytes(), trust_remote_code)
    sizes = {path: (folder / path).stat().st_size for path in chosen}
    files = []
    with progress.stage("Hashing", sum(sizes.values())) as advance:
        for path in chosen:
            digest = _sha256(folder / path, advance)
            files.append(SourceFile(path=path, size=sizes[path], sha256=digest))
    return Source(
        name=name,
        repo=repo,
        revision=revision,
        commit=commit,
        folder=folder,
        files=tuple(files),
        licence=_licence(folder, chosen, progress),
    )


def _cached_source(
    repo: str,
    revision: str | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    progress: Progress,
) -> Source:
    """A Hub source without the network (HF_HUB_OFFLINE): what an earlier run downloaded."""
    with translated(repo, revision=revision, missing=SourceError):
        try:
            found = snapshot_download(
                repo, revision=revision, cache_dir=cache_dir, local_files_only=True
            )
        except LocalEntryNotFoundError as error:
            raise SourceError(
                f"{repo} is not in the local cache",
                why="HF_HUB_OFFLINE is set",
                next_step="Unset it, or download the model first",
            ) from error
    folder = Path(found)
    return _local_source(repo, folder, repo, revision, folder.name, trust_remote_code, progress)


def _with_digest(file: SourceFile, folder: Path) -> SourceFile:
    """`file` with its SHA-256, where it holds weights and the Hub did not say it."""
    if file.sha256 is not None or not file.path.endswith(".safetensors"):
        return file
    return replace(file, sha256=_sha256(folder / file.path, lambda _: None))


def _sha256(path: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _licence(folder: Path, paths: Collection[str], progress: Progress) -> Licence:
    card: dict[str, Any] = {}
    if README in paths:
        try:
            card = metadata_load(folder / README) or {}
        except (yaml.YAMLError, ValueError, UnicodeDecodeError):
            progress.note("The base model's card has no readable metadata: its licence is unknown")
    return read_licence(card, paths)
