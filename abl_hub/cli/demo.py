"""`abl-hub demo`: the whole job without a network."""

from __future__ import annotations

from pathlib import Path

import click

from abl_hub.cli.output import Output


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-abliterated"),
    show_default=True,
    help="Output folder; replaced if an earlier run made it.",
)
@click.pass_obj
def demo(output: Output, /, out: Path) -> None:
    """Do the whole job on a small model that is trained on the spot, without a network.

    The model refuses one harmless topic. It is trained once, in one to two minutes on two cores,
    and kept in ABL_HUB_CACHE (~/.cache/abl-hub). Then it is published to a Hub that runs on this
    machine while the command does, converted, pushed, loaded back and compared.
    """
    from abl_hub.cli.show import show_record
    from abl_hub.demo.run import run_demo
    from abl_hub.stages.runtime import Runtime

    result = run_demo(out, Runtime(progress=output), command=f"abl-hub demo -o {out}")
    show_record(output, result.record, out, result.pushed)
    output.line(f"The local Hub answered {result.requests} requests; it and its addresses are gone")
    output.line(f"Chat with it, before and after: abl-hub space {out} --base {result.base}")
