"""`abl-hub analyse`, `report` and `probe`: for readers who want to know what was edited."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from abl_hub.cli.asked import runtime_of
from abl_hub.cli.options import hub_options, runtime_options
from abl_hub.cli.output import Output
from abl_hub.cli.values import Text

_folder = click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))


def _doses(value: str | None) -> tuple[float, ...]:
    try:
        doses = tuple(float(part) for part in value.split(",")) if value else ()
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of numbers, as in 0,0.5,1") from error
    if not all(map(math.isfinite, doses)):
        raise click.BadParameter(f"{value!r} holds a number that is not finite")
    return doses


@click.command()
@_folder
@click.option(
    "--dose",
    metavar="STRENGTHS",
    callback=lambda _ctx, _param, value: _doses(value),
    help="Also try the edit at these strengths, as in 0,0.5,1,1.5; takes replies to validation "
    "prompts at each.  [default: none]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    show_default=True,
    help="Also make the direction again from N other splits of the prompts.",
)
@runtime_options
@hub_options
@click.pass_obj
def analyse(
    output: Output, /, out: Path, dose: tuple[float, ...], seeds: int, **options: Any
) -> None:
    """Measure how the behaviour lies in the residual stream of OUT's base.

    \b
    abl-hub analyse out --dose 0,0.25,0.5,0.75,1,1.25
    """
    from abl_hub.cli.show import show_analysis
    from abl_hub.stages.analyse import analyse as run

    show_analysis(output, run(out, runtime_of(output, options), doses=dose, seeds=seeds))


@click.command()
@_folder
@click.pass_obj
def report(output: Output, /, out: Path) -> None:
    """Render OUT's record as one HTML page, OUT/report/report.html, with its pictures.

    \b
    abl-hub report out
    """
    from abl_hub.report.page import write_report
    from abl_hub.report.record import load_record
    from abl_hub.stages.links import refuse_links

    folder = out / "report"
    refuse_links(folder, *folder.glob("*"))
    page = write_report(load_record(out), folder)
    output.line(f"Wrote {page}")
    output.result(str(page), {"report": str(page)})


@click.command()
@_folder
@click.option(
    "--suffix",
    type=Text(),
    metavar="TEXT",
    required=True,
    help="Text that is put after every prompt.",
)
@runtime_options
@hub_options
@click.pass_obj
def probe(output: Output, /, out: Path, suffix: str, **options: Any) -> None:
    """Show what a suffix does to the direction of OUT, by layer and by attention head, and how well
    the behaviour is still told from activations.

    \b
    abl-hub probe out --suffix "in one word"
    """
    from abl_hub.stages.probe import probe as run

    found = run(out, suffix, runtime_of(output, options))
    names = [row.name for row in found.rows]
    detectors = [[one.detector for one in side] for side in found.detection]
    output.table(
        ["projection at layer", *names, "AUC", "with suffix", "accuracy", "with suffix"],
        [
            [
                str(layer),
                *(f"{row.projections[layer]:.3f}" for row in found.rows),
                *(f"{side[layer].auc.value:.3f}" for side in detectors),
                *(f"{side[layer].accuracy.value:.2f}" for side in detectors),
            ]
            for layer in range(len(found.rows[0].projections))
        ]
        + [
            [
                "log-odds of the behaviour",
                *(f"{row.log_odds:.2f}" for row in found.rows),
                *[""] * 4,
            ]
        ],
    )
    output.table(
        ["writes along the direction", "without", "with suffix"],
        [[name, f"{plain:.3f}", f"{with_it:.3f}"] for name, plain, with_it in found.changed],
    )
    output.result(
        f"{found.rows[0].log_odds:.4f} {found.rows[1].log_odds:.4f}",
        {
            "rows": [
                {
                    "name": row.name,
                    "log_odds": row.log_odds,
                    "projections": list(row.projections),
                    "writes": row.writes,
                }
                for row in found.rows
            ],
            "detection": [[asdict(one) for one in side] for side in found.detection],
        },
    )
