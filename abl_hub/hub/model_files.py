"""Which files of a repository or folder make the model: weights, config, tokenizer, licence.

Knows names, and the index of shards; never picks a pickle, nor code unless it is asked for. Does
not know where the files are.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Collection

from abl_hub.errors import SourceError
from abl_hub.hub.licence import is_licence_file

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


def select_files(
    name: str, paths: Collection[str], read: Callable[[str], bytes], trust_remote_code: bool
) -> tuple[str, ...]:
    """The files of a repository that make the model, sorted.

    Raises:
        SourceError: no config.json, no safetensors, or an index that is not one.
    """
    if CONFIG not in paths:
        instead, next_step = _instead(paths)
        raise SourceError(
            f"{name} has no {CONFIG}",
            why=f"it is not a transformers model{instead}",
            next_step=next_step,
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


def _instead(paths: Collection[str]) -> tuple[str, str]:
    """What a folder without a configuration holds, and what to give in its place."""
    if "adapter_config.json" in paths:
        return ", but an adapter", "Give the base model of the adapter"
    if any(path.lower().endswith(".gguf") for path in paths):
        return (
            ", but GGUF files, which are not edited",
            "Give the model that they were made from, and convert the result to GGUF",
        )
    return "", "Give the repository or folder of the model itself"


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
