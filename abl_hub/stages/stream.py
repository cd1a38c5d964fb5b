"""The merged model straight to the Hub: each shard is edited, checked, uploaded and deleted.

So it is never whole on this disk: of its weights, one shard lies here at a time. A shard that the
edit does not touch is copied by the Hub itself, where it can. The Hub shows nothing of it before
the one commit that `push` makes at the end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from abl_hub.edits.checkpoint import WrittenFile, merged, written_file
from abl_hub.edits.merged_files import MergedFiles
from abl_hub.edits.staging import check_space
from abl_hub.hub.ahead import Ahead
from abl_hub.hub.source import Source
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from abl_hub.report.record import Record, save_record
from abl_hub.stages.apply import recorded_direction
from abl_hub.stages.edit import recorded_edit
from abl_hub.stages.forms import merged_record
from abl_hub.stages.runtime import Runtime


def stream_merged(
    record: Record, out: Path, source: Source, folder: Path, ahead: Ahead, runtime: Runtime
) -> Record:
    """Upload the merged model's weights, and leave its other files in `folder`; the whole record.

    Called again after a failure it makes the shards again, and the Hub is sent none that it has.

    Args:
        out: holds direction and record; the record is written there.
        ahead: where the shards go.

    Raises:
        EditError: the edit fails its check on a shard.
        OutputError: no room for a shard.
        HubError: the Hub failed.
    """
    blueprint = meta_model(source.folder, trust_remote_code=record.recipe.trust_remote_code)
    edit = recorded_edit(record, recorded_direction(record, out), trace_writers(blueprint))
    files = MergedFiles(
        edit,
        source.folder,
        model=blueprint,
        rounding=record.recipe.rounding,
        untie=record.recipe.untie,
    )
    held = {
        file.path: WrittenFile(path=file.path, sha256=file.sha256, size_bytes=file.size)
        for file in source.files
        if file.sha256 is not None and file.path.endswith(".safetensors")
    }
    check_space(folder, max(file.size_bytes for file in held.values()))
    written = []
    with runtime.progress.stage("Streaming the merged model", files.source_bytes) as advance:
        for name in files.weights:
            if files.is_untouched(name) and ahead.copy_file(
                name, sha256=held[name].sha256, size=held[name].size_bytes
            ):
                written.append(held[name])
                advance(held[name].size_bytes)
                continue
            shard = files.write(name, folder, advance)
            files.check(name, shard)
            written.append(written_file(folder, name))
            ahead.send_file(name, shard)
            shard.unlink()
    for name in files.companions:
        files.write(name, folder)
        written.append(written_file(folder, name))
    form = merged_record(merged(files, folder, tuple(sorted(written, key=lambda f: f.path))))
    record = replace(record, merged=replace(form, streamed=True))
    save_record(record, out)
    return record
