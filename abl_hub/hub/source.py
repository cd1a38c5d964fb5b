"""From a Hub id or a folder to a pinned `Source`: safetensors, tokenizer, config, licence; no more.

Knows where a model can lie (folder, Hub, the client's cache) and pins what is there; which files
make it is in `model_files`. Does not open a tensor.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.repocard import metadata_load

from abl_hub.errors import SourceError
from abl_hub.hub.failures import translated
from abl_hub.hub.licence import Licence, read_licence
from abl_hub.hub.model_files import CONFIG, README, select_files
from abl_hub.hub.remote_model import RemoteModel, SourceFile
from abl_hub.progress import SILENT, Advance, Progress

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's files on this machine, pinned.

    Args:
        name: as the user gave it; of a folder without a name of its own (".") the whole path.
        repo: Hub id; None for a local folder.
        revision: as the user gave it.
        commit: what it resolved to; None for a local folder.
        folder: where the files are. It may hold other files: only `files` belong to the source.
        files: relative to `folder`, sorted; every .safetensors has its SHA-256. All of them are
            there, unless they were asked for without the weights.
        licence: from the card.
    """

    name: str
    repo: str | None
    revision: str | None
    commit: str | None
    folder: Path
    files: tuple[SourceFile, ...]
    licence: Licence

    @property
    def absent(self) -> tuple[SourceFile, ...]:
        """Files that are not in `folder`."""
        return tuple(file for file in self.files if not (self.folder / file.path).exists())


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """What `resolve_source` would fetch.

    Args:
        config_folder: where config.json is now (downloaded for this, with code if asked for).
        licence: from the card, which is downloaded for this too.
        weight_bytes: bytes of safetensors.
        absent: what is not on this machine yet.
    """

    name: str
    repo: str | None
    revision: str | None
    commit: str | None
    config_folder: Path
    files: tuple[SourceFile, ...]
    licence: Licence
    weight_bytes: int
    absent: tuple[SourceFile, ...]

    @property
    def download_files(self) -> int:
        return len(self.absent)

    @property
    def download_bytes(self) -> int:
        return sum(file.size for file in self.absent)


def resolve_source(
    source: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
    progress: Progress = SILENT,
) -> Source:
    """Pin `source` and have its files on this machine.

    Args:
        source: Hub id (`org/model`) or local folder; an existing folder wins.
        trust_remote_code: also fetch the repository's *.py files.
        weights: False fetches no weights; those that were fetched before are used.

    Raises:
        SourceError: not there, not open to the token, no such revision, no safetensors, no
            config.json, an index that names files that are not there.
        HubError: the Hub could not be reached or refused.
    """
    folder = local_folder(source, revision)
    if folder is not None:
        return _local_source(
            _name(source, folder), folder, None, None, None, trust_remote_code, progress
        )
    if constants.is_offline_mode():
        return _cached_source(source, revision, cache_dir, trust_remote_code, progress)
    remote = RemoteModel(
        repo=source, revision=revision, token=token, endpoint=endpoint, cache_dir=cache_dir
    )
    files = remote.select(trust_remote_code)
    folder = remote.download([f for f in files if weights or not _is_stored_apart(f)], progress)
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
    """What `resolve_source` would fetch; downloads config, card and the shards' index at most.

    Raises:
        SourceError, HubError: as `resolve_source` would.
    """
    folder = local_folder(source, revision)
    if folder is not None or constants.is_offline_mode():
        resolved = (
            _local_source(
                _name(source, folder),
                folder,
                None,
                None,
                None,
                trust_remote_code,
                SILENT,
                hashed=False,
            )
            if folder is not None
            else _cached_source(
                source, revision, cache_dir, trust_remote_code, SILENT, hashed=False
            )
        )
        commit, config_folder, files = resolved.commit, resolved.folder, resolved.files
        licence = resolved.licence
        absent: tuple[SourceFile, ...] = ()
    else:
        remote = RemoteModel(
            repo=source, revision=revision, token=token, endpoint=endpoint, cache_dir=cache_dir
        )
        files = remote.select(trust_remote_code)
        described = [f for f in files if f.path in (CONFIG, README) or f.path.endswith(".py")]
        commit, config_folder = remote.commit, remote.download(described, SILENT)
        licence = _licence(config_folder, [file.path for file in files], SILENT)
        absent = tuple(file for file in files if not remote.has(file))
    return SourcePlan(
        name=source if folder is None else _name(source, folder),
        repo=None if folder is not None else source,
        revision=revision,
        commit=commit,
        config_folder=config_folder,
        files=files,
        licence=licence,
        weight_bytes=sum(f.size for f in files if f.path.endswith(".safetensors")),
        absent=absent,
    )


def local_folder(source: str, revision: str | None) -> Path | None:
    """The folder that `source` names; None when it must be a Hub id.

    Raises:
        SourceError: neither, or a folder with a revision.
    """
    folder = Path(source).expanduser()
    if source.strip() and folder.is_dir():
        if revision is not None:
            raise SourceError(
                f"{source} is a local folder",
                why="it has no revisions",
                next_step="Drop --revision",
            )
        return folder.resolve()
    if _HUB_ID.fullmatch(source) and not folder.exists():
        return None
    raise SourceError(
        f"There is no folder {source or repr(source)}",
        why="it is a file" if folder.is_file() else "",
        next_step="Give a folder with a model, or a Hub id like org/model",
    )


def _name(source: str, folder: Path) -> str:
    return str(folder) if Path(source).name in ("", "..") else source


def _local_source(
    name: str,
    folder: Path,
    repo: str | None,
    revision: str | None,
    commit: str | None,
    trust_remote_code: bool,
    progress: Progress,
    *,
    hashed: bool = True,
) -> Source:
    """A source whose files are all here: named by their SHA-256, if they are `hashed`."""
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    chosen = select_files(
        name, present, lambda path: (folder / path).read_bytes(), trust_remote_code
    )
    sizes = {path: (folder / path).stat().st_size for path in chosen}
    files = []
    with progress.stage("Hashing", sum(sizes.values())) as advance:
        for path in chosen:
            digest = _sha256(folder / path, advance) if hashed else None
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
    *,
    hashed: bool = True,
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
    return _local_source(
        repo, folder, repo, revision, folder.name, trust_remote_code, progress, hashed=hashed
    )


def _is_stored_apart(file: SourceFile) -> bool:
    """Whether these are weights in the Hub's large-file storage, which names their SHA-256."""
    return file.path.endswith(".safetensors") and file.sha256 is not None


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


def base_models(folder: Path) -> tuple[str, ...]:
    """Hub ids that the card in `folder` names as what this model was made of (`base_model`)."""
    try:
        named = (metadata_load(folder / README) or {}).get("base_model")
    except (OSError, yaml.YAMLError, ValueError):
        return ()
    ids = named if isinstance(named, list) else [named]
    return tuple(one for one in ids if isinstance(one, str) and _HUB_ID.fullmatch(one))


def _licence(folder: Path, paths: Collection[str], progress: Progress) -> Licence:
    card: dict[str, Any] = {}
    if README in paths:
        try:
            card = metadata_load(folder / README) or {}
        except (yaml.YAMLError, ValueError, UnicodeDecodeError):
            progress.note("The base model's card has no readable metadata: its licence is unknown")
    return read_licence(card, paths)
