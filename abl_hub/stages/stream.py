"""The merged model straight to the Hub: each shard is edited, checked, uploaded and deleted.

So it is never whole on this disk: of its weights, one shard lies here at a time. Nor need the base
be: a shard of it that is not here already is fetched in its turn, and dropped. A shard that the
edit does not touch is copied by the Hub itself, where it can. The Hub shows nothing of it before
the one commit that `push` makes at the end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from abl_hub import __version__
from abl_hub.edits.checkpoint import WrittenFile, merged, written_file
from abl_hub.edits.edit import Edit
from abl_hub.edits.merged_files import MergedFiles
from abl_hub.edits.staging import check_space
from abl_hub.hub.ahead import Ahead
from abl_hub.hub.passing import PassingFiles
from abl_hub.hub.source import Source
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from abl_hub.progress import Advance
from abl_hub.report.record import Record, save_record
from abl_hub.stages.edit import recorded_edit
from abl_hub.stages.extract import recorded_direction
from abl_hub.stages.forms import merged_record
from abl_hub.stages.journal import Journal, streaming_folder
from abl_hub.stages.passing import PassingShards, passing_shards
from abl_hub.stages.runtime import Runtime


def stream_merged(
    record: Record, out: Path, source: Source, folder: Path, ahead: Ahead, runtime: Runtime
) -> Record:
    """Upload the merged model's weights, and leave its other files in `folder`; the whole record.

    Called again after a failure it goes on where it was: what the Hub has is neither fetched, nor
    made, nor sent again.

    Args:
        out: holds direction and record; the record is written there.
        source: the base; its weights need not be here.
        ahead: where the shards go.

    Raises:
        SourceError: a shard of the base is damaged, or no longer open to the token.
        EditError: the edit fails its check on a shard.
        OutputError: no room for a shard.
        HubError: the Hub failed.
    """
    blueprint = meta_model(source.folder, trust_remote_code=runtime.trust_remote_code)
    edit = recorded_edit(record, recorded_direction(record, out), trace_writers(blueprint))
    with streaming_folder(out) as kept:
        journal = Journal(kept, _identity(record, edit), _sent_before(record))
        passing = PassingFiles(
            source, kept / "base", token=runtime.token, endpoint=runtime.endpoint
        )
        base = passing_shards(source, passing, edit, blueprint)
        files = MergedFiles(
            edit,
            source.folder,
            model=blueprint,
            rounding=record.recipe.rounding,
            untie=record.recipe.untie,
            shards=base.shards,
        )
        stream = _Stream(source, files, base, folder, ahead, journal)
        check_space(folder, stream.largest_bytes * (2 if base.absent else 1))
        written = []
        with runtime.progress.stage("Streaming the merged model", files.source_bytes) as advance:
            for name in files.weights:
                written.append(stream.send(name, advance))
        for name in files.companions:
            files.write(name, folder)
            written.append(written_file(folder, name))
        form = merged_record(merged(files, folder, tuple(sorted(written, key=lambda f: f.path))))
        record = replace(record, merged=replace(form, streamed=True))
        save_record(record, out)
    return record


class _Stream:
    """Shards on their way, one after the other."""

    def __init__(
        self,
        source: Source,
        files: MergedFiles,
        base: PassingShards,
        folder: Path,
        ahead: Ahead,
        journal: Journal,
    ) -> None:
        self.files, self.base, self.folder = files, base, folder
        self.ahead, self.journal = ahead, journal
        self.held = {
            file.path: WrittenFile(path=file.path, sha256=file.sha256, size_bytes=file.size)
            for file in source.files
            if file.sha256 is not None and file.path.endswith(".safetensors")
        }

    @property
    def largest_bytes(self) -> int:
        return max(file.size_bytes for file in self.held.values())

    def send(self, name: str, advance: Advance) -> WrittenFile:
        """Have the Hub hold one shard of the merged model: copied, kept, or made and sent."""
        same = self.held[name] if self.files.is_untouched(name) else None
        if same and self.ahead.copy_file(name, sha256=same.sha256, size=same.size_bytes):
            advance(same.size_bytes)
            return same
        known = same or self.journal.sent.get(name)
        if known and self.ahead.claim_file(name, sha256=known.sha256, size=known.size_bytes):
            advance(sum(self.held[read].size_bytes for read in self.files.reads[name]))
            return known
        self.base.hold(self.files.reads[name])
        shard = self.files.write(name, self.folder, advance)
        self.files.check(name, shard)
        written = written_file(self.folder, name)
        self.ahead.send_file(name, shard)
        shard.unlink()
        self.journal.add(written)
        return written


def _identity(record: Record, edit: Edit) -> dict[str, str]:
    """Everything that decides the merged model's bytes."""
    return {
        "base": record.source.digest,
        "edit": edit.digest,
        "rounding": record.recipe.rounding,
        "untie": str(record.recipe.untie),
        "abl-hub": __version__,
        "torch": torch.__version__,
    }


def _sent_before(record: Record) -> tuple[WrittenFile, ...]:
    """Shards that an earlier push of this record streamed; `apply` forgets them."""
    if record.merged is None or not record.merged.streamed:
        return ()
    return tuple(
        WrittenFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
        for file in record.merged.files
        if file.path.endswith(".safetensors")
    )
