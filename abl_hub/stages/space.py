"""The Space's folder: the app's own files, its configuration from the record, its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from abl_hub.hub.licence import duties, notices
from abl_hub.report.record import Record
from abl_hub.report.space_card import render_space_card, space_config
from abl_hub.resources import templates
from abl_hub.stages.card import write_plots
from abl_hub.stages.extract import DIRECTION, recorded_direction
from abl_hub.stages.inputs import base_place

_OURS = {".jinja", ".pyc"}


def write_space(
    out: Path,
    folder: Path,
    record: Record,
    repos: Mapping[str, str],
    *,
    base: str | None = None,
    delta: str | None = None,
) -> Path:
    """Write the Space for `out` into `folder`, which it replaces.

    Args:
        repos: "merged", "delta", "space" → repositories; empty for a Space on this machine.
        base: where the base lies, if not where the record says.
        delta: where the delta lies; None is its repository, or else `out`.
    """
    recorded_direction(record, out)  # tokens are coloured by it
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(
        templates("spaces") / "compare",
        partial,
        ignore=lambda _folder, names: [
            name for name in names if Path(name).suffix in _OURS or name == "__pycache__"
        ],
    )
    shutil.copyfile(out / DIRECTION, partial / DIRECTION)
    write_plots(out, record, partial)
    config = space_config(
        record,
        base=base or base_place(record),
        delta=delta or repos.get("delta") or str((out / "delta").resolve()),
    )
    (partial / "space.json").write_text(
        json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    card = render_space_card(
        record,
        related=repos,
        notices=notices(record.source.licence, record.source.licence_name),
        duties=duties(record.source.licence, record.source.licence_name, repo=repos.get("space")),
    )
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
