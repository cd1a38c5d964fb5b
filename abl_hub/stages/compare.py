"""The app's folder for whatever can be compared: an output, or a delta or Space on the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from abl_hub.errors import SourceError
from abl_hub.hub.shown import fetch_shown
from abl_hub.report.record import load_record
from abl_hub.stages.forms import DELTA
from abl_hub.stages.inputs import base_place, note_another_base
from abl_hub.stages.memory import refuse_if_too_large
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.space import write_space


def compare_folder(
    target: str, scratch: Path, runtime: Runtime, *, base: str | None = None
) -> Path:
    """A folder with this package's own app and the target's data.

    Args:
        target: an output folder, or the Hub id of a delta or Space; a folder that exists wins.
        scratch: an empty folder.
        base: where the base lies, if not where the record says.

    Raises:
        SourceError: the target is nothing that can be compared, or the base does not fit.
        HubError: the Hub failed or refused.
    """
    out, delta = Path(target), None
    if not out.is_dir():
        shown = fetch_shown(
            target, token=runtime.token, endpoint=runtime.endpoint, cache_dir=runtime.cache_dir
        )
        # The Hub's cache is not ours to write to, and plots are drawn beside the record.
        out = scratch / "shown"
        shutil.copytree(shown.folder, out)
        delta = str(out)
    record = load_record(out)
    if delta is None and DELTA in record.refused:
        raise SourceError(f"{out} has no delta to switch on and off", why=record.refused[DELTA])
    if delta is not None and base is None and record.source.repo is None:
        # A path on somebody else's machine is none here.
        raise SourceError(
            f"{target} was made from a folder, so its base is not on the Hub",
            next_step="Say where the base lies: --base",
        )
    refuse_if_too_large(base or base_place(record))
    if base is not None:
        note_another_base(base, record, runtime)
    return write_space(out, scratch / "space", record, {}, base=base, delta=delta)
