"""What was written, as the record holds it: files, notes, and how exact the edit is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from abl_hub.edits.checkpoint import Merged, WrittenFile
from abl_hub.edits.delta import Delta
from abl_hub.edits.edit import Edit
from abl_hub.report.record import FileRecord, FormRecord

MERGED: Final = "merged"
DELTA: Final = "delta"


def merged_record(merged: Merged) -> FormRecord:
    """A merged model."""
    return FormRecord(files=_files(merged.files), notes=_notes(merged))


def delta_record(delta: Delta) -> FormRecord:
    """An adapter."""
    return FormRecord(
        files=_files(delta.files),
        notes=delta.notes,
        profile=delta.profile,
        left_out=tuple(left.parameter for left in delta.left_out),
    )


def _files(files: Sequence[WrittenFile]) -> tuple[FileRecord, ...]:
    """Files by name, hash and size."""
    return tuple(
        FileRecord(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes) for file in files
    )


def exactness(edit: Edit, *, changes_head: bool) -> str:
    """How near the edit is to ablation at runtime."""
    if any(strength != 1.0 for strength in edit.strengths):
        return "partial"
    if changes_head:
        return "head changed"
    if any(writer.rescaled for writer in edit.writers):
        return "exact null, rescaled"
    return "exact"


def _notes(merged: Merged) -> tuple[str, ...]:
    notes = []
    if merged.untied:
        notes.append("the output head has its own, unedited matrix now (it was tied)")
    if merged.changes_head:
        notes.append("the output head is still tied to the embedding and changed with it")
    if merged.left_alone_keys:
        notes.append(
            f"{len(merged.left_alone_keys)} tensors are no part of the model that transformers "
            "builds (multi-token prediction, other modalities, old buffers) and were copied as "
            "they are"
        )
    return tuple(notes)
