"""`abl-hub space`: the Space of an output folder, on this machine."""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import click

from abl_hub.cli.asked import runtime_of
from abl_hub.cli.output import Output


@click.command()
@click.argument("target", metavar="OUT|USER/REPO")
@click.option(
    "--base", metavar="SOURCE", help="Hub id or folder of the base.  [default: as in the record]"
)
@click.option("--write-only", is_flag=True, help="Write OUT/space and do not open it.")
@click.pass_obj
def space(output: Output, /, target: str, base: str | None, write_only: bool) -> None:
    """Chat with base and edited model side by side, in the browser.

    Of an output folder, or of a delta or Space on the Hub; of those, data is downloaded, and the
    app that runs is this program's own.

    \b
    abl-hub space out
    abl-hub space user/model-abliterated-compare
    """
    from abl_hub.report.record import load_record
    from abl_hub.stages.compare import compare_folder
    from abl_hub.stages.space import write_space

    if write_only:
        out = Path(target)
        record = load_record(out)
        folder = write_space(out, out / "space", record, {}, base=base)
        output.line(f"Wrote {folder}")
        output.result(str(folder), {"space": str(folder)})
        return
    with tempfile.TemporaryDirectory(prefix="abl-hub-space-") as scratch:
        folder = compare_folder(target, Path(scratch), runtime_of(output, {}), base=base)
        # The app is a program of its own, as on the Hub: it imports what lies beside it.
        sys.path.insert(0, str(folder))
        runpy.run_path(str(folder / "app.py"), run_name="__main__")
