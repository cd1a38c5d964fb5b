"""Plots from a record, as PNG: the candidates that were judged, and the rates with their intervals.

The same record gives the same bytes, so that publishing it again changes nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from abl_hub.directions.selection import MAX_KL
from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Arm
from abl_hub.report.figures import DPI
from abl_hub.report.record import Record

_COLOURS = {"base": "#4c566a", "edited": "#c2410c", "random": "#94a3b8", "added": "#0f766e"}


_SCORES = {
    "bypass": "log-odds under ablation",
    "induce": "log-odds under addition",
    "kl": "KL on other prompts, nats",
}


def candidates_plot(record: Record, path: Path) -> None:
    """Bypass and induce scores and KL of every candidate, by layer.

    The layer of the recorded direction is marked, and its scores are ringed where it has any: with
    fitted strengths a deeper one may be taken, which was no candidate. What no candidate was judged
    by, as of a direction that is to be added, is left out.
    """
    taken = record.direction
    candidates = record.selection.candidates[taken.method]
    ringed = [
        one
        for one in candidates
        if (one.layer, one.position, one.rank) == (taken.layer, taken.position, taken.rank)
    ]
    scores = {
        field: title
        for field, title in _SCORES.items()
        if any(getattr(candidate, field) is not None for candidate in candidates)
    }
    figure = Figure(figsize=(3.0 * max(len(scores), 2), 3.2), dpi=DPI, layout="constrained")
    panels: Any = figure.subplots(1, len(scores), squeeze=False)[0]
    positions = sorted({candidate.position for candidate in candidates})
    for panel, (field, title) in zip(panels, scores.items(), strict=True):
        for number, position in enumerate(positions):
            line = [c for c in candidates if c.position == position]
            shade = str(0.75 - 0.75 * (number + 1) / len(positions))
            panel.plot(
                [c.layer for c in line],
                [_number(getattr(c, field)) for c in line],
                marker="o",
                markersize=3,
                linewidth=1,
                color=shade,
                label=f"position {position}",
            )
        panel.axvline(taken.layer, color=_COLOURS["edited"], linewidth=0.8)
        panel.plot(
            [one.layer for one in ringed],
            [_number(getattr(one, field)) for one in ringed],
            marker="o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=_COLOURS["edited"],
            markeredgewidth=2,
            linestyle="none",
        )
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("layer", fontsize=8)
        layers = [taken.layer, *(c.layer for c in candidates)]
        panel.set_xlim(min(layers) - 0.3, max(layers) + 0.3)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        if field == "kl":
            panel.set_yscale("symlog", linthresh=0.01)
            panel.axhline(MAX_KL, color="#94a3b8", linewidth=0.8, linestyle="--")
            top = max(2 * MAX_KL, 1.5 * max(c.kl for c in candidates if c.kl is not None))
            marks = [mark for mark in (0.0, 0.01, 0.1, 1.0, 10.0) if mark <= top]
            panel.set_ylim(0, top)
            panel.set_yticks(marks, [f"{mark:g}" for mark in marks], minor=False)
            panel.minorticks_off()
    panels[0].legend(fontsize=7, frameon=False)
    _save(figure, path)


def _number(score: float | None) -> float:
    """A gap in the line where a candidate was out before this score was needed."""
    return math.nan if score is None else score


def deltas_plot(record: Record, path: Path) -> None:
    """Rates on both sides, base, edited and controls, with their 95% intervals.

    Raises:
        EvaluationError: the record has no evaluation.
    """
    evaluation = record.evaluation
    if evaluation is None:
        raise EvaluationError(
            "The record has no evaluation",
            why="there is nothing to plot",
            next_step="Run `abl-hub evaluate` first",
        )
    figure = Figure(figsize=(9.0, 3.0), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    behaviour = record.direction.behaviour
    removed = [
        ("base", evaluation.base, "base"),
        ("edited", evaluation.edited, "edited"),
        *(
            (f"random {i}" if i else "random", arm, "random")
            for i, arm in enumerate(evaluation.random)
        ),
    ]
    _bars(left, [(name, arm, colour) for name, arm, colour in removed], "positive")
    left.set_title(f"{behaviour} on prompts that show it", fontsize=9)
    others = [("base", evaluation.base, "base"), ("edited", evaluation.edited, "edited")]
    if evaluation.induced is not None:
        others.append(("added", evaluation.induced, "added"))
    others += [
        (f"random added {number}" if number else "random added", arm, "random")
        for number, arm in enumerate(evaluation.induced_controls)
    ]
    if record.recipe.induce:
        others += removed[2:]
    _bars(right, others, "negative")
    right.set_title(f"{behaviour} on other prompts", fontsize=9)
    _save(figure, path)


def _bars(panel: Any, arms: list[tuple[str, Arm, str]], side: str) -> None:
    shown = [(name, getattr(arm, side), colour) for name, arm, colour in arms]
    shown = [(name, rates.refused, colour) for name, rates, colour in shown if rates is not None]
    for row, (_, rate, colour) in enumerate(shown):
        panel.barh(row, rate.value, color=_COLOURS[colour], height=0.6)
        panel.plot([rate.low, rate.high], [row, row], color="black", linewidth=1.2)
    panel.set_yticks(range(len(shown)), [name for name, _, _ in shown], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.02)
    panel.set_xlabel("share of replies", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    # The library writes its version into the file unless told not to.
    figure.savefig(path, format="png", metadata={"Software": None}, facecolor="white")
