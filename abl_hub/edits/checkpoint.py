"""The merged form: an edited copy of a checkpoint, made shard by shard.

Bytes that no writer owns are copied as they are, inside the kernel or by sharing blocks; the
writers' bytes are read from the source, edited and written. Headers, order and dtypes stay; the
source is only read. The model is never loaded.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from abl_hub.edits.companions import companions, json_text, untied
from abl_hub.edits.edit import Edit, Factors, factors
from abl_hub.edits.keys import CheckpointTensors, Place
from abl_hub.edits.matrix import Rows
from abl_hub.edits.plan import CheckpointPlan, UntiedHead, by_file, plan_tensors
from abl_hub.edits.rewrite import rewrite
from abl_hub.edits.safetensors_file import header_bytes
from abl_hub.edits.shards import CONFIG, INDEX, SINGLE, Shards, open_shards, read_json, real_file
from abl_hub.edits.staging import Stage, check_space, clone, copy_range, staging
from abl_hub.model.gains import gains_from_tensors
from abl_hub.progress import SILENT, Advance, Progress

Rounding = Literal["nearest", "cancelling"]

_HEAD_SHARD = "model-untied-head.safetensors"
_SPARE_BYTES = 64 * 10**6
"""Tokenizer, config and a margin."""
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """One file of an output."""

    path: str
    """Relative to the output's folder, with forward slashes."""
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Merged:
    """An edited checkpoint that has been written."""

    folder: Path
    files: tuple[WrittenFile, ...]
    edited_keys: tuple[str, ...]
    left_alone_keys: tuple[str, ...]
    """Keys that are no parameter of the model (multi-token prediction), copied as they are."""
    untied: bool
    """The head has its own matrix now, the unedited one."""
    changes_head: bool
    """An edited embedding is still tied to the head, which changed with it."""
    rounding: Rounding


def write_merged(
    edit: Edit,
    source: Path,
    out: Path,
    *,
    model: PreTrainedModel,
    rounding: Rounding = "nearest",
    untie: bool = True,
    progress: Progress = SILENT,
) -> Merged:
    """Write the checkpoint in `source`, edited, as the new folder `out`.

    Args:
        source: a checkpoint in safetensors; also a snapshot in the Hub's cache.
        out: must not exist, or be an empty folder. It appears when it is whole.
        model: the architecture of `source`, on the meta device.
        rounding: `nearest`, or `cancelling` for float16 and bfloat16 (`edits.rounding`). FP8 and
            MXFP4 are always rounded so that the direction stays gone.
        untie: where an edited embedding is tied to the head, store the unedited matrix for the
            head. Otherwise the head changes with the embedding.

    Raises:
        SourceError: a checkpoint that is damaged, or not of this model.
        EditError: a checkpoint that cannot be edited where it lies, or that holds NaN or infinity.
        OutputError: `out` is taken, or the disk is full.
    """
    shards = open_shards(source)
    config = read_json(source, CONFIG)
    tensors = CheckpointTensors(model, shards.tensors, config)
    changes = edit_factors(edit, model, tensors)
    edited = [writer for writer in edit.writers if writer.parameter in changes]
    plan = plan_tensors(tensors, model, edited, untie=untie)
    with staging(out) as stage, ThreadPoolExecutor(1) as hashing:
        try:
            if not _can_clone(source, stage):
                check_space(out, plan.bytes_written + _SPARE_BYTES)
            files = []
            for name in _write(shards, config, model, plan, changes, rounding, stage, progress):
                # The next shard is copied by the kernel while this one is hashed.
                files.append(hashing.submit(_hashed, stage.folder, name))
            written = tuple(sorted((file.result() for file in files), key=lambda f: f.path))
        finally:
            hashing.shutdown(cancel_futures=True)
        return Merged(
            folder=stage.publish(),
            files=written,
            edited_keys=tuple(place.matrix.key for place in plan.places),
            left_alone_keys=plan.left_alone_keys,
            untied=bool(plan.heads),
            changes_head=plan.changes_head,
            rounding=rounding,
        )


def edit_factors(
    edit: Edit, model: PreTrainedModel, tensors: CheckpointTensors
) -> dict[str, Factors]:
    """Parameter → factors, for every writer whose strength is not 0; gains from the checkpoint."""
    gains = gains_from_tensors(model, edit.writers, tensors.read_parameter)
    return {
        writer.parameter: factors(edit, writer, strength, gains)
        for writer, strength in zip(edit.writers, edit.strengths, strict=True)
        if strength != 0
    }


def _write(
    shards: Shards,
    config: dict[str, Any],
    model: PreTrainedModel,
    plan: CheckpointPlan,
    changes: Mapping[str, Factors],
    rounding: Rounding,
    stage: Stage,
    progress: Progress,
) -> Iterator[str]:
    """Write every file of the output; yield each name when the file is whole."""
    new_heads = [head for head in plan.heads if not head.stored]
    places = by_file(plan.places)
    shard_names = _shard_names(shards, bool(new_heads))
    with progress.stage("Writing the checkpoint", shards.size_bytes) as advance:
        for name in shards.names:
            file = real_file(shards.folder, name)
            target = stage.folder / shard_names[name]
            _write_shard(file, target, places.get(file, ()), changes, rounding, advance)
            yield shard_names[name]
    if new_heads:
        _write_heads(new_heads, stage.folder / _HEAD_SHARD)
        yield _HEAD_SHARD
    if shards.index is not None or new_heads:
        index = _index(shards, shard_names, new_heads)
        (stage.folder / INDEX).write_text(json_text(index), encoding="utf-8")
        yield INDEX
    if plan.heads:
        config = untied(config, _text_config_name(model))
        (stage.folder / CONFIG).write_text(json_text(config), encoding="utf-8")
    else:
        _copy(real_file(shards.folder, CONFIG), stage.folder / CONFIG)
    yield CONFIG
    for name in companions(shards.folder):
        target = stage.folder / name
        target.parent.mkdir(exist_ok=True)
        _copy(real_file(shards.folder, name), target)
        yield name


def _write_shard(
    source: Path,
    target: Path,
    places: Sequence[Place],
    changes: Mapping[str, Factors],
    rounding: Rounding,
    advance: Advance,
) -> None:
    """One shard: everything but the places is copied, or shared, and each byte written once."""
    shared = clone(source, target)
    with source.open("rb", buffering=0) as old, target.open("r+b", buffering=0) as new:
        done = 0
        for place in places:
            codes = place.matrix.codes
            if not shared:
                copy_range(old.fileno(), new.fileno(), done, codes.start)
            matrix = place.matrix
            rewrite(
                Rows.of(matrix, place.axis),
                changes[place.writer.parameter],
                old,
                new,
                cancelling=rounding == "cancelling" or matrix.scales is not None,
            )
            advance(codes.stop - done)
            done = codes.stop
        size_bytes = source.stat().st_size
        if not shared:
            copy_range(old.fileno(), new.fileno(), done, size_bytes)
        advance(size_bytes - done)


def _shard_names(shards: Shards, with_head: bool) -> dict[str, str]:
    """Shard of the source → its name in the output.

    transformers reads `model.safetensors` alone where it is there, so it gets another name when a
    second shard joins it.
    """
    if with_head and shards.index is None:
        return {SINGLE: "model-00001-of-00001.safetensors"}
    return {name: name for name in shards.names}


def _write_heads(heads: Sequence[UntiedHead], target: Path) -> None:
    """A shard of the unedited matrices, their bytes copied from where the embeddings lie."""
    stored = [replace(head.embedding.codes, key=head.key) for head in heads]
    with target.open("wb") as new:
        new.write(header_bytes(stored))
        for tensor in stored:
            with tensor.file.open("rb") as old:
                old.seek(tensor.start)
                left = tensor.size_bytes
                while left:
                    piece = old.read(min(left, _PIECE_BYTES))
                    left -= new.write(piece)


def _index(
    shards: Shards, shard_names: Mapping[str, str], new_heads: Sequence[UntiedHead]
) -> dict[str, Any]:
    index = shards.index or {
        "metadata": {"total_size": sum(t.size_bytes for t in shards.tensors.values())},
        "weight_map": dict.fromkeys(sorted(shards.tensors), SINGLE),
    }
    weight_map = {key: shard_names[name] for key, name in index["weight_map"].items()}
    weight_map |= {head.key: _HEAD_SHARD for head in new_heads}
    metadata = dict(index.get("metadata") or {})
    for name, added in (
        ("total_size", sum(head.embedding.codes.size_bytes for head in new_heads)),
        ("total_parameters", sum(math.prod(head.embedding.shape) for head in new_heads)),
    ):
        if isinstance(metadata.get(name), int):
            metadata[name] += added
    return {**index, "metadata": metadata, "weight_map": weight_map}


def _text_config_name(model: PreTrainedModel) -> str | None:
    """The attribute of a wrapper's config that describes its language model."""
    text = model.config.get_text_config()
    names = (name for name in model.config.sub_configs if getattr(model.config, name) is text)
    return next(names, None)


def _copy(source: Path, target: Path) -> None:
    if not clone(source, target):
        shutil.copyfile(source, target)


def _can_clone(source: Path, stage: Stage) -> bool:
    """Whether copies take no space, because the file system shares blocks between files."""
    trial = stage.folder / ".clone"
    try:
        return clone(real_file(source, CONFIG), trial)
    finally:
        trial.unlink()


def _hashed(folder: Path, name: str) -> WrittenFile:
    with (folder / name).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(path=name, sha256=sha256, size_bytes=file.tell())
