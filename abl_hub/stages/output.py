"""Where outputs are made: in a partial sibling folder that becomes the output when it is whole.

One process makes an output at a time, and what abl-hub did not make is never removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from abl_hub.errors import OutputError, SourceError
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import RECORD, Record, load_record

MARKER = ".abl-hub-partial"
"""Lies in a partial folder, says that abl-hub made it, and is locked while somebody fills it."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """An output in the making: `folder` is filled, and becomes `out` when it is whole."""

    folder: Path
    out: Path
    overwrite: bool

    def resumed(self, recipe: Recipe) -> Record | None:
        """What an interrupted run of this recipe got to; None where there was none."""
        try:
            record = load_record(self.folder)
        except SourceError:  # none, or unreadable: as good as another recipe's
            return None
        return record if record.recipe == recipe else None

    def start_over(self) -> None:
        """Remove what an earlier run left."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()

    def publish(self) -> None:
        """Let the whole folder become `out`; an old output goes once the new one is there.

        Raises:
            OutputError: something has appeared there meanwhile.
        """
        check_free(self.out, overwrite=self.overwrite)
        home = self.out.resolve()
        old = None
        try:
            if self.overwrite and home.exists():
                # A fresh name: OUT.old may be somebody's.
                old = Path(tempfile.mkdtemp(prefix=f"{home.name}.old-", dir=home.parent))
                home.rename(old)
            self.folder.rename(home)
        except OSError as error:
            if old is not None and not home.exists():
                old.rename(home)
            raise OutputError(
                f"{self.out} cannot be written",
                why=str(error.strerror),
                next_step=f"What was made is in {self.folder}",
            ) from error
        (home / MARKER).unlink()
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def making(out: Path, *, overwrite: bool, source: Path | None = None) -> Iterator[Making]:
    """Hold the partial folder of `out`, with what an interrupted run left in it.

    It stays when the caller fails, if it holds a record to go on from.

    Args:
        source: folder of the base, where it is one: neither lies in the other.

    Raises:
        OutputError: `out` may not become the output, another process is making it, or the partial
            folder is somebody else's or cannot be written to.
    """
    check_free(out, overwrite=overwrite)
    if source is not None:
        _check_apart(out, source)
    home = out.resolve()
    folder = home.with_name(home.name + ".partial")
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not marker.is_file():
            raise OutputError(
                f"{folder} was not made by abl-hub",
                why=f"{out} would be made there",
                next_step="Move it away, or give another -o",
            )
        held = hold(marker, out)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made",
            why=str(error.strerror),
            next_step="Give another -o, or permission to write there",
        ) from error
    try:
        yield Making(folder=folder, out=out, overwrite=overwrite)
    finally:
        if marker.is_file() and not (folder / RECORD).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Check that `out` may become the output.

    Raises:
        OutputError: something is there already that may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise OutputError(
            f"{out} is not empty", next_step="Give another -o, or --overwrite to replace it"
        )
    if not (out / RECORD).is_file():
        raise OutputError(
            f"{out} was not made by abl-hub",
            why="--overwrite replaces only an earlier output",
            next_step="Give another -o",
        )


def _check_apart(out: Path, source: Path) -> None:
    home, base = out.resolve(), source.resolve()
    if home.is_relative_to(base) or base.is_relative_to(home):
        raise OutputError(
            f"{out} and the source {source} lie in one another",
            why="a source is never written to",
            next_step="Give another -o",
        )


def hold(marker: Path, out: Path) -> int:
    """An advisory lock on the marker, which is made if need be, until the descriptor is closed.

    Raises:
        OutputError: another process holds it.
        OSError: it cannot be opened, or its file system has no locks.
    """
    # For writing: over NFS nothing else can be locked.
    descriptor = os.open(marker, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have finished, and removed it, between our opening and our locking.
        lost = not marker.exists() or not os.path.samestat(os.fstat(descriptor), marker.stat())
    except BlockingIOError:
        lost = True
    except OSError:
        os.close(descriptor)
        raise
    if lost:
        os.close(descriptor)
        raise OutputError(
            f"Another process is making {out}", next_step="Wait for it, or give another -o"
        )
    return descriptor
