"""Outputs appear whole or not at all: a temporary sibling folder, renamed when it is complete.

A process that is killed leaves the sibling behind; the next one that writes to the same place
removes it, unless its writer still lives (an advisory lock tells). As safe against a loss of power
as `cp` is: nothing waits for the disk.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from abl_hub.errors import OutputError

_FICLONE = 0x40049409
"""ioctl of Linux: share the blocks of a whole file, copied on write (linux/fs.h)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The folder that is being filled, and where it goes."""

    folder: Path
    out: Path

    def publish(self) -> Path:
        """Give the folder its name; call when everything is in it.

        Raises:
            OutputError: something has appeared there meanwhile.
        """
        try:
            self.folder.rename(self.out)
        except OSError as error:
            raise OutputError(f"{self.out} cannot be written", why=_reason(error)) from error
        return self.out


@contextmanager
def staging(out: Path) -> Iterator[Stage]:
    """A temporary sibling of `out` to fill and `publish`; removed if it was not.

    Raises:
        OutputError: `out` is there and not an empty folder, or its parent cannot be written to.
    """
    check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        folder = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written", why=_reason(error)) from error
    lock = _lock(folder)
    try:
        folder.chmod(0o777 & ~_umask())
        yield Stage(folder=folder, out=out)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out} cannot be written", why=_reason(error)) from error
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def check_free(out: Path) -> None:
    """Raises `OutputError` where `out` is there and not an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise OutputError(
            f"{out} is there already",
            next_step="Choose another place, or remove it first",
        )


def check_space(out: Path, needed_bytes: int) -> None:
    """Raises `OutputError` where the disk of `out` has less than `needed_bytes` free."""
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise OutputError(
            f"{needed_bytes / 1e9:.1f} GB are needed at {out}",
            why=f"{free_bytes / 1e9:.1f} GB are free",
            next_step="Free some space, or choose another place",
        )


def clone(source: Path, target: Path) -> bool:
    """Make `target` share the blocks of `source`, where the file system can; whether it could."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            return False
    return True


def copy_range(source: int, target: int, start: int, stop: int) -> None:
    """Copy bytes between two open files, at the same place, inside the kernel where it can.

    Raises:
        OutputError: the source ends before `stop`.
    """
    while start < stop:
        try:
            done = os.copy_file_range(source, target, stop - start, start, start)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            done = os.pwrite(target, os.pread(source, min(stop - start, 1 << 24), start), start)
        if not done:
            raise OutputError("A file became shorter while it was copied")
        start += done


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _remove_abandoned(out: Path) -> None:
    for folder in out.parent.glob(f"{glob.escape(_prefix(out))}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A held advisory lock on the folder; None where another process holds it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor
    return None


def _umask() -> int:
    """mkdtemp makes folders private; an output has the permissions that mkdir would give."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(error: OSError | SafetensorError) -> str:
    if isinstance(error, SafetensorError):
        return str(error)  # its words for the errors of writing, too
    return error.strerror or type(error).__name__
