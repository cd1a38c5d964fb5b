"""The merged form: an edited copy of a checkpoint, a folder that appears when it is whole.

What its files are, and how each is made, is in `merged_files`; here they are written and hashed,
several side by side.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from transformers import PreTrainedModel

from abl_hub.edits.edit import Edit
from abl_hub.edits.merged_files import MergedFiles, Rounding
from abl_hub.edits.rewrite import one_thread
from abl_hub.edits.shards import CONFIG, real_file
from abl_hub.edits.staging import Stage, check_space, clone, staging
from abl_hub.errors import EditError
from abl_hub.progress import SILENT, Advance, Progress

_WRITERS = 2

_SPARE_BYTES = 64 * 10**6
"""Tokenizer, config and a margin."""


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
    files = MergedFiles(edit, source, model=model, rounding=rounding, untie=untie)
    return write_files(files, out, progress=progress)


def write_files(files: MergedFiles, out: Path, *, progress: Progress = SILENT) -> Merged:
    """Write all of an edited checkpoint's files as the new folder `out`.

    Raises:
        EditError: a weight that holds NaN or infinity.
        OutputError: `out` is taken, or the disk is full.
    """
    with staging(out) as stage:
        if not _can_clone(files.source, stage):
            check_space(out, files.plan.bytes_written + _SPARE_BYTES)
        with progress.stage("Writing the checkpoint", files.source_bytes) as advance:
            written = _write_side_by_side(files, stage.folder, advance)
        return merged(files, stage.publish(), written)


def _write_side_by_side(
    files: MergedFiles, folder: Path, advance: Advance
) -> tuple[WrittenFile, ...]:
    """Write and hash all files, several at once: the kernel copies one while another is hashed."""
    stopped, counting = Event(), Lock()

    def count(done: int) -> None:
        if stopped.is_set():
            raise _StoppedError("The checkpoint was not written, because a part of it failed")
        with counting:
            advance(done)

    def written(name: str) -> WrittenFile:
        count(0)
        files.write(name, folder, count)
        return written_file(folder, name)

    # One thread of torch for each: on a busy machine, threads that wait for each other are slower.
    with one_thread(), ThreadPoolExecutor(min(_WRITERS, os.cpu_count() or 1)) as writers:
        try:
            parts = [writers.submit(written, name) for name in (*files.weights, *files.companions)]
            wait(parts, return_when=FIRST_EXCEPTION)
        finally:
            # What still runs ends at its next tensor; what has not begun never does.
            stopped.set()
            writers.shutdown(cancel_futures=True)
    failed = [part.exception() for part in parts if part.done() and not part.cancelled()]
    for error in failed:
        if error is not None and not isinstance(error, _StoppedError):
            raise error
    return tuple(sorted((part.result() for part in parts), key=lambda file: file.path))


class _StoppedError(EditError):
    """Another part failed."""


def merged(files: MergedFiles, folder: Path, written: tuple[WrittenFile, ...]) -> Merged:
    """What `files` made, once they are written."""
    return Merged(
        folder=folder,
        files=written,
        edited_keys=tuple(place.matrix.key for place in files.plan.places),
        left_alone_keys=files.plan.left_alone_keys,
        untied=bool(files.plan.heads),
        changes_head=files.plan.changes_head,
        rounding=files.rounding,
    )


def _can_clone(source: Path, stage: Stage) -> bool:
    """Whether copies take no space, because the file system shares blocks between files."""
    trial = stage.folder / ".clone"
    try:
        return clone(real_file(source, CONFIG), trial)
    finally:
        trial.unlink()


def written_file(folder: Path, name: str) -> WrittenFile:
    """A file in `folder` as it was written."""
    with (folder / name).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(path=name, sha256=sha256, size_bytes=file.tell())
