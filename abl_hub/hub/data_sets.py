"""A split of a Hub data set as a table, read from a commit of its repository and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import yaml
from huggingface_hub import DatasetCard, HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile

from abl_hub.errors import SourceError
from abl_hub.hub.bars import client_bars_silenced
from abl_hub.hub.failures import translated
from abl_hub.hub.prompt_table import Table, first_line

LARGEST_BYTES = 2 * 10**9
DATA_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".arrow")
_README = "README.md"


def hub_table(
    repo: str,
    revision: str | None,
    config: str | None,
    split: str | None,
    token: str | None,
    endpoint: str | None,
    cache_dir: Path | None,
    scratch: str,
) -> Table:
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
            allow_patterns=[*(f"*{suffix}" for suffix in DATA_SUFFIXES), _README],
            cache_dir=cache_dir,
            token=token,
            endpoint=api.endpoint,
        )
    _refuse_outside(Path(folder), repo)
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(folder, name=config, cache_dir=scratch, keep_in_memory=True)
    except (
        *(ValueError, OSError, datasets.exceptions.DatasetsError),
        *(AttributeError, KeyError, TypeError),  # of a card whose metadata has another shape
    ) as error:
        raise SourceError(f"The data set {repo} cannot be read", why=first_line(error)) from error
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
    return Table(
        name=repo,
        revision=commit,
        split=found,
        columns=tuple(data.column_names),
        read=lambda name: data[name][:],
        config=config,
    )


def _refuse_outside(folder: Path, repo: str) -> None:
    """Refuse a card that names data outside of its repository.

    Raises:
        SourceError: a path is absolute, goes up, or is an address; or the card cannot be read.
    """
    if not (folder / _README).is_file():
        return
    try:
        card = DatasetCard.load(folder / _README, ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise SourceError(f"The card of {repo} cannot be read", why=first_line(error)) from error
    configs = card.data.get("configs")
    for config in configs if isinstance(configs, list) else ():
        if not isinstance(config, dict):
            continue  # `datasets` says what is wrong with it
        for path in _texts([config.get("data_files"), config.get("data_dir")]):
            parts = PurePosixPath(path)
            if parts.is_absolute() or ".." in parts.parts or urlparse(path).scheme or "::" in path:
                raise SourceError(
                    f"The data set {repo} is not read",
                    why=f"its card names data outside of its repository, {path!r}",
                )


def _texts(value: object) -> Iterator[str]:
    """Every text in lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        yield from _texts([*value.values()])


def _is_data(path: str) -> bool:
    return path.endswith(DATA_SUFFIXES)
