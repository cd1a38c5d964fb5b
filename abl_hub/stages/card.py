"""Stage 4: a model card beside each artifact, from the record alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from abl_hub.errors import EvaluationError
from abl_hub.hub.licence import duties
from abl_hub.report.card import Kind, render_card
from abl_hub.report.plots import candidates_plot, deltas_plot
from abl_hub.report.record import RECORD, Record, load_record
from abl_hub.stages.apply import DELTA, MERGED
from abl_hub.stages.extract import DIRECTION

README = "README.md"
PLOTS = "plots"
_KINDS: tuple[Kind, ...] = ("merged", "delta")


def write_cards(
    out: Path, repos: Mapping[str, str] | None = None, *, gate_prompt: str | None = None
) -> tuple[Path, ...]:
    """Write README.md, plots, record and direction into `out/merged` and `out/delta`.

    Args:
        repos: "merged", "delta", "space" → the repository that it is published to.
        gate_prompt: what readers are shown when they ask for access.

    Raises:
        EvaluationError: the record has no evaluation yet.
    """
    record = load_record(out)
    if record.evaluation is None:
        raise EvaluationError(
            f"The record in {out} has no evaluation",
            why="a card without numbers says nothing",
            next_step=f"Run `abl-hub evaluate {out}` first",
        )
    written = []
    for kind in _KINDS:
        folder = out / kind
        plots = folder / PLOTS
        plots.mkdir(exist_ok=True)
        candidates_plot(record, plots / "candidates.png")
        deltas_plot(record, plots / "deltas.png")
        for name in (RECORD, DIRECTION):
            shutil.copyfile(out / name, folder / name)
        card = folder / README
        card.write_text(_card(record, kind, dict(repos or {}), gate_prompt), encoding="utf-8")
        written.append(card)
    return tuple(written)


def _card(record: Record, kind: Kind, repos: dict[str, str], gate_prompt: str | None) -> str:
    beside = {MERGED: f"../{MERGED}", DELTA: f"../{DELTA}"}
    return render_card(
        record,
        kind,
        repo=repos.get(kind),
        related=repos or beside,
        command=record.command,
        duties=duties(record.source.licence),
        gate_prompt=gate_prompt,
    )
