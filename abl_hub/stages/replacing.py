"""The forms of an edit take the place of an output's earlier ones together, once they are checked.

Killed before, the output is what it was; killed while they change places, its record says that
nothing was applied yet, and `apply` begins again. Knows folders and the record; no edit.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from abl_hub.errors import OutputError
from abl_hub.report.record import Record, save_record
from abl_hub.stages.forms import DELTA, MERGED
from abl_hub.stages.output import MARKER, hold

MAKING = ".making"
"""Inside the output, so that a rename is enough."""


@contextmanager
def making_forms(out: Path) -> Iterator[Path]:
    """A folder inside `out` to write forms into; what a killed run left there is removed.

    Raises:
        OutputError: another process is in it, or it cannot be made.
    """
    folder = out / MAKING
    try:
        if folder.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        folder.mkdir(exist_ok=True)
        held = hold(folder / MARKER, out)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made",
            why=str(error.strerror),
            next_step="Remove what is there, or get permission to write there",
        ) from error
    try:
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def put_in_place(made: Path, out: Path, record: Record) -> None:
    """Let the forms in `made` be those of `out`, and `record` its record.

    Args:
        made: from `making_forms`; of its subfolders only those named like forms are taken.
    """
    old = [form for form in (MERGED, DELTA) if (out / form).exists()]
    if old:
        none = replace(
            record,
            edit=None,
            merged=None,
            delta=None,
            agreement=None,
            evaluation=None,
            refused={},
        )
        save_record(none, out)
    for form in old:
        (out / form).rename(made / f"old-{form}")
    for form in (MERGED, DELTA):
        if (made / form).exists():
            (made / form).rename(out / form)
    save_record(record, out)
