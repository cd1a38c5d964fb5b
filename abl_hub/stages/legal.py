"""The licence files of the base: kept with the direction, and put into whatever is published.

Knows names of files and folders; what a licence asks is known to `abl_hub.hub.licence`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from abl_hub.errors import SourceError
from abl_hub.hub.licence import notice_file
from abl_hub.report.record import Record
from abl_hub.stages.links import refuse_links

LEGAL = "licence"
_NOTICE = "NOTICE"


def keep_legal(source: Path, files: Iterable[str], out: Path) -> None:
    """Copy the base's licence, notice and use-policy files to `out/licence`."""
    for name in files:
        (out / LEGAL).mkdir(exist_ok=True)
        shutil.copyfile(source / name, out / LEGAL / name)


def legal_names(record: Record) -> tuple[str, ...]:
    """The files that `carry_legal` writes."""
    names = record.source.licence_files
    return names if _notice(record) is None else (*names, _NOTICE)


def carry_legal(record: Record, out: Path, folder: Path) -> None:
    """Put those files into `folder`, and the Notice that the licence wants if the base has none.

    Raises:
        SourceError: a file that the record names is not in `out`.
        OutputError: it is a link.
    """
    source = record.source
    for name in source.licence_files:
        kept = out / LEGAL / name
        refuse_links(kept.parent, kept)
        if Path(name).name != name or not kept.is_file():
            raise SourceError(
                f"{kept} is missing",
                why="the base's licence files go with whatever is made from it",
                next_step=f"Run `abl-hub extract {source.name} -o {out}` again",
            )
        shutil.copyfile(kept, folder / name)
    notice = _notice(record)
    if notice is not None:
        (folder / _NOTICE).write_text(notice, encoding="utf-8")


def _notice(record: Record) -> str | None:
    """The Notice that the licence wants; None where it wants none, or the base has one."""
    source = record.source
    if any(name.lower().startswith("notice") for name in source.licence_files):
        return None
    return notice_file(source.licence, source.licence_name) or None
