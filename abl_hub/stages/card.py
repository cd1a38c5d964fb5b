"""Stage 5: a card beside each artifact, from the record alone, and the direction by itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from abl_hub.errors import EvaluationError, SourceError
from abl_hub.hub.licence import duties, notices
from abl_hub.report.card import KINDS, Kind, render_card
from abl_hub.report.plots import candidates_plot, deltas_plot
from abl_hub.report.published import published
from abl_hub.report.record import RECORD, Record, load_record, save_record
from abl_hub.stages.extract import DIRECTION, recorded_direction
from abl_hub.stages.legal import carry_legal, legal_names
from abl_hub.stages.links import refuse_links

README = "README.md"
PLOTS = "plots"
ALONE = "direction"
"""Folder of the direction by itself: a dataset of one vector, with its card."""
_DRAWN = {"candidates.png": candidates_plot, "deltas.png": deltas_plot}


def write_cards(
    out: Path, repos: Mapping[str, str] | None = None, *, gate_prompt: str | None = None
) -> tuple[Path, ...]:
    """Write README.md, plots, record, direction and licence files into each form's folder.

    Makes `out/direction`, too, which holds these files only.

    Args:
        repos: "merged", "delta", "direction", "space" → the repository that it is published to.
        gate_prompt: what readers are shown when they ask for access.

    Raises:
        EvaluationError: the record has no evaluation yet.
        SourceError: the base's licence files are not there.
    """
    return tuple(
        write_card(out, kind, out / kind, repos, gate_prompt=gate_prompt)
        # The direction's first: the others copy its plots.
        for kind in sorted(kinds(load_record(out)), key=lambda kind: kind != ALONE)
        if kind == ALONE or (out / kind).is_dir()  # a merged model that is streamed is not
    )


def write_card(
    out: Path,
    kind: Kind,
    folder: Path,
    repos: Mapping[str, str] | None = None,
    *,
    gate_prompt: str | None = None,
) -> Path:
    """Write README.md, plots, record, direction and licence files of one artifact into `folder`.

    Raises:
        EvaluationError: the record has no evaluation yet.
        SourceError: the base's licence files are not there.
        OutputError: `folder` is a link, or holds one, through which others' files would be written.
    """
    record = load_record(out)
    refuse_links(folder, *folder.glob("*"), *folder.glob(f"{PLOTS}/*"))
    if record.evaluation is None:
        raise EvaluationError(
            f"The record in {out} has no evaluation",
            why="a card without numbers says nothing",
            next_step=f"Run `abl-hub evaluate {out}` first",
        )
    recorded_direction(record, out)
    folder.mkdir(exist_ok=True)
    write_plots(out, record, folder)
    shutil.copyfile(out / DIRECTION, folder / DIRECTION)
    save_record(published(record), folder)
    carry_legal(record, out, folder)
    card = folder / README
    card.write_text(_card(record, kind, dict(repos or {}), gate_prompt), encoding="utf-8")
    return card


def published_files(record: Record, part: str, folder: Path) -> dict[str, Path]:
    """Path → file of what is published of `folder`: what the record names, and its card's own.

    Whatever else lies there, links too, was put there by somebody else. Shards that were streamed
    are not there.
    """
    forms = {"merged": record.merged, "delta": record.delta}
    form = forms.get(part)
    names = {file.path for file in form.files} if form else set()
    names |= {README, RECORD, DIRECTION, *(f"{PLOTS}/{name}" for name in _DRAWN)}
    names |= set(legal_names(record))
    return {name: folder / name for name in sorted(names) if (folder / name).is_file()}


def write_plots(out: Path, record: Record, folder: Path) -> None:
    """Put the plots of `record` into `folder`: drawn once for an output, then copied.

    What was drawn lies in `out/direction`, beside the record that it was drawn from.

    Raises:
        EvaluationError: the record has no evaluation yet.
    """
    drawn, target = out / ALONE, folder / PLOTS
    target.mkdir(exist_ok=True)
    if _shows(drawn, record):
        if target != drawn / PLOTS:
            for name in _DRAWN:
                shutil.copyfile(drawn / PLOTS / name, target / name)
        return
    for name, draw in _DRAWN.items():
        draw(record, target / name)


def _shows(folder: Path, record: Record) -> bool:
    """Whether the plots in `folder` are there, and of the same numbers as those of `record`."""
    if not all((folder / PLOTS / name).is_file() for name in _DRAWN):
        return False
    try:
        drawn = load_record(folder)
    except SourceError:  # none, or of another version: as good as other numbers
        return False
    return (drawn.direction, drawn.selection, drawn.evaluation) == (
        record.direction,
        record.selection,
        record.evaluation,
    )


def kinds(record: Record) -> tuple[Kind, ...]:
    """What there is to describe: the forms that were written, and the direction."""
    written = {"merged": record.merged, "delta": record.delta, "direction": record.direction}
    return tuple(kind for kind in KINDS if written[kind] is not None)


def _card(record: Record, kind: Kind, repos: dict[str, str], gate_prompt: str | None) -> str:
    source = record.source
    return render_card(
        record,
        kind,
        repo=repos.get(kind),
        related=repos or {other: f"../{other}" for other in kinds(record)},
        notices=notices(source.licence, source.licence_name),
        duties=duties(source.licence, source.licence_name, repo=repos.get(kind)),
        gate_prompt=gate_prompt,
    )
