"""`abl-hub space`: the Space of an output folder, on this machine."""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import click

from abl_hub.cli.output import Output


@click.command()
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--base", help="Hub id or folder of the base.  [default: as in the record]")
@click.option("--write-only", is_flag=True, help="Write OUT/space and do not open it.")
@click.pass_obj
def space(output: Output, /, out: Path, base: str | None, write_only: bool) -> None:
    """Chat with base and edited model of OUT side by side, in the browser.

    \b
    abl-hub space out
    """
    from abl_hub.report.record import load_record
    from abl_hub.stages.memory import refuse_if_too_large
    from abl_hub.stages.space import write_space

    record = load_record(out)
    if write_only:
        folder = write_space(out, out / "space", record, {}, base=base)
        output.line(f"Wrote {folder}")
        output.result(str(folder), {"space": str(folder)})
        return
    refuse_if_too_large(base or record.source.repo or record.source.name)
    with tempfile.TemporaryDirectory(prefix="abl-hub-space-") as scratch:
        folder = write_space(out, Path(scratch) / "space", record, {}, base=base)
        # The app is a program of its own, as on the Hub: it imports what lies beside it.
        sys.path.insert(0, str(folder))
        runpy.run_path(str(folder / "app.py"), run_name="__main__")
