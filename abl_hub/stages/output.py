"""Where outputs are made: in a partial sibling folder that becomes the output when it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from abl_hub.errors import OutputError, SourceError
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import RECORD, load_record


def claim(out: Path, *, overwrite: bool) -> None:
    """Check that `out` may become the output.

    Raises:
        OutputError: something is there already, or its parent cannot be written to.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise OutputError(
            f"{out} is not empty", next_step="Give another -o, or --overwrite to replace it"
        )
    if out.exists() and overwrite and any(out.iterdir()) and not (out / RECORD).is_file():
        raise OutputError(
            f"{out} was not made by abl-hub",
            why="--overwrite replaces only an earlier output",
            next_step="Give another -o",
        )


def partial_folder(out: Path, recipe: Recipe) -> tuple[Path, bool]:
    """The folder in which `out` is being made, and whether it holds a run to be resumed.

    A partial run of another recipe is discarded.
    """
    partial = out.with_name(out.name + ".partial")
    if (partial / RECORD).is_file():
        try:
            if load_record(partial).recipe == recipe:
                return partial, True
        except SourceError:
            pass  # unreadable: as good as another recipe's
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{partial} cannot be made", why=str(error.strerror)) from error
    return partial, False


def publish_whole(partial: Path, out: Path) -> None:
    """Let the whole partial folder become `out`; an old output goes once the new one is there."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
