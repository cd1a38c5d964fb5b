"""Figures of the report: separation, detector, geometry, what is left, dose response, front.

Each takes a record's section and gives PNG bytes; the same record gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from abl_hub.evaluation.intervals import Estimate
from abl_hub.report.record import AnalysisRecord, FrontPoint, Record, StrengthsRecord

_SHOWN, _OTHER, _NEUTRAL, _KL = "#c2410c", "#0f766e", "#4c566a", "#7c3aed"
DPI = 200
_MEASURES = {"failures": "failures", "damage": "damage to other prompts"}


def separation_figure(analysis: AnalysisRecord, behaviour: str) -> bytes:
    """Histogram of projections of both sides on the direction."""
    figure, panel = _single(6.4, 3.0)
    edges = analysis.separation.edges
    widths = [right - left for left, right in pairwise(edges)]
    for counts, colour, name in (
        (analysis.separation.positive, _SHOWN, f"prompts that show {behaviour}"),
        (analysis.separation.negative, _OTHER, "other prompts"),
    ):
        panel.bar(edges[:-1], counts, widths, align="edge", color=colour, alpha=0.65, label=name)
    panel.set_xlabel("projection on the direction", fontsize=8)
    panel.set_ylabel("held-out prompts", fontsize=8)
    panel.legend(fontsize=8, frameon=False)
    return _png(figure)


def detector_figure(analysis: AnalysisRecord) -> bytes:
    """Area under the curve and accuracy of each layer's direction as a detector."""
    figure, panel = _single(6.4, 3.0)
    layers = [found.layer for found in analysis.detection]
    for name, colour in (("auc", _SHOWN), ("accuracy", _OTHER)):
        estimates = [getattr(found.detector, name) for found in analysis.detection]
        label = "area under the curve" if name == "auc" else name
        panel.plot(layers, [e.value for e in estimates], "o-", ms=3, color=colour, label=label)
        panel.fill_between(
            layers,
            [e.low for e in estimates],
            [e.high for e in estimates],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    panel.axhline(0.5, color="#94a3b8", linewidth=0.8, linestyle="--")
    panel.set_ylim(0.35, 1.03)
    panel.set_xlabel("layer", fontsize=8)
    panel.set_ylabel("on held-out prompts", fontsize=8)
    panel.legend(fontsize=8, frameon=False, loc="lower right")
    return _png(figure)


def geometry_figure(analysis: AnalysisRecord) -> bytes:
    """Cosines between the layers' directions; separation and effective rank by layer."""
    figure = Figure(figsize=(9.0, 3.2), dpi=DPI, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    image = left.imshow(analysis.cosines, cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
    left.set_title("cosine between layers", fontsize=9)
    left.set_xlabel("layer", fontsize=8)
    left.set_ylabel("layer", fontsize=8)
    figure.colorbar(image, ax=left, shrink=0.8).ax.tick_params(labelsize=7)
    layers = [one.layer for one in analysis.geometry]
    apart = [math.nan if one.separation is None else one.separation for one in analysis.geometry]
    middle.plot(layers, apart, "o-", ms=3, color=_SHOWN)
    middle.set_title("difference over spread", fontsize=9)
    middle.set_xlabel("layer", fontsize=8)
    right.plot(layers, [one.effective_rank for one in analysis.geometry], "o-", ms=3, color=_KL)
    right.set_title("effective rank of differences", fontsize=9)
    right.set_xlabel("layer", fontsize=8)
    for panel in (middle, right):
        panel.spines[["top", "right"]].set_visible(False)
    for panel in (left, middle, right):
        panel.tick_params(labelsize=8)
    return _png(figure)


def residual_figure(analysis: AnalysisRecord, behaviour: str) -> bytes:
    """Log-odds of the behaviour without what is edited, and without several directions."""
    figure, panel = _single(6.4, 2.8)
    panel.plot(range(len(analysis.residual)), analysis.residual, "o-", ms=4, color=_SHOWN)
    panel.axhline(0, color="#94a3b8", linewidth=0.8, linestyle="--")
    ticks = range(len(analysis.residual))
    panel.set_xticks(ticks, ["none", "as edited", *map(str, ticks[2:])][: len(ticks)])
    panel.set_xlabel("directions removed", fontsize=8)
    panel.set_ylabel(f"log-odds of {behaviour}", fontsize=8)
    return _png(figure)


def dose_figure(analysis: AnalysisRecord, induce: bool) -> bytes:
    """Failures, damage and KL over strengths; of what is added, if `induce`."""
    failures, damage = (
        ("still without it", "no longer with it") if induce else ("failures", "damage")
    )
    figure, panel = _single(6.4, 3.0)
    strengths = [dose.strength for dose in analysis.dose]
    panel.plot(strengths, [d.failures for d in analysis.dose], "o-", color=_SHOWN, label=failures)
    panel.plot(strengths, [d.damage for d in analysis.dose], "o-", color=_OTHER, label=damage)
    panel.set_ylim(-0.03, 1.03)
    panel.set_xlabel("strength", fontsize=8)
    panel.set_ylabel("share of replies", fontsize=8)
    beside: Any = panel.twinx()
    beside.plot(strengths, [d.kl for d in analysis.dose], "s--", ms=3, color=_KL, label="KL")
    beside.set_ylabel("KL, nats a token", fontsize=8)
    beside.tick_params(labelsize=8)
    beside.spines[["top"]].set_visible(False)
    lines = [*panel.get_lines(), *beside.get_lines()]
    panel.legend(
        lines,
        [str(line.get_label()) for line in lines],
        fontsize=8,
        frameon=False,
        loc="center left",
    )
    return _png(figure)


def front_figure(strengths: StrengthsRecord, front: Sequence[FrontPoint]) -> bytes:
    """Failures and damage against KL, by whole replies to validation prompts: every fitted point,
    one strength beside it, and a ring around the one that was taken.

    Where the front was not judged as a whole: the points that the choice judged, without intervals.
    """
    shown = list(front) or _judged_for_the_choice(strengths)
    figure = Figure(figsize=(7.2, 3.3), dpi=DPI, layout="constrained")
    panels: Any = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, measure in zip(panels, ("failures", "damage"), strict=True):
        for fitted in (True, False):
            points = [one for one in shown if _fitted(strengths, one.point) == fitted]
            points.sort(key=lambda one: one.kl.value)
            shares = [getattr(one, measure) for one in points]
            panel.errorbar(
                [one.kl.value for one in points],
                [share.value for share in shares],
                yerr=_ends(shares),
                xerr=_ends([one.kl for one in points]),
                fmt="o-" if fitted else "s",
                ms=5,
                lw=1.2,
                elinewidth=0.7,
                alpha=0.9,
                color=_SHOWN if fitted else _NEUTRAL,
                label="fitted strengths" if fitted else "one strength",
                zorder=3,
            )
        panel.plot(
            [one.kl.value for one in shown if one.point == strengths.chosen],
            [getattr(one, measure).value for one in shown if one.point == strengths.chosen],
            "o",
            ms=12,
            mfc="none",
            mec="black",
            mew=1.1,
            label="taken",
            zorder=4,
        )
        panel.set_title(_MEASURES[measure], fontsize=9)
        panel.set_xlabel("KL(base ‖ edited), nats a token", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="#e2e8f0", linewidth=0.6)
        panel.set_axisbelow(True)
    panels[0].set_ylim(-0.05, 1.05)
    panels[0].set_xlim(left=0)
    panels[0].set_ylabel("share of replies", fontsize=8)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False
    )
    return _png(figure)


def _fitted(strengths: StrengthsRecord, point: int | None) -> bool:
    return point is not None and strengths.points[point].kl_weight is not None


def _judged_for_the_choice(strengths: StrengthsRecord) -> list[FrontPoint]:
    """What is known of older records' points, and of those of a direction that was not kept."""
    return [
        FrontPoint(
            point=index,
            failures=_without_interval(point.failures),
            damage=_without_interval(point.damage),
            kl=_without_interval(point.kl),
        )
        for index, point in enumerate(strengths.points)
        if point.failures is not None and point.damage is not None and point.kl is not None
    ]


def _without_interval(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, count=0)


def _ends(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above."""
    return [one.value - one.low for one in estimates], [one.high - one.value for one in estimates]


def figures(record: Record) -> dict[str, bytes]:
    """Name → PNG, of everything that the record holds."""
    found: dict[str, bytes] = {}
    behaviour = record.direction.behaviour
    analysis = record.analysis
    if analysis is not None:
        found["separation"] = separation_figure(analysis, behaviour)
        found["detector"] = detector_figure(analysis)
        found["geometry"] = geometry_figure(analysis)
        if analysis.residual:
            found["residual"] = residual_figure(analysis, behaviour)
        if analysis.dose:
            found["dose"] = dose_figure(analysis, record.recipe.induce)
    if record.strengths is not None and record.strengths.points:
        found["front"] = front_figure(record.strengths, analysis.front if analysis else ())
    return found


def _single(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    panel: Any = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    return figure, panel


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # The library writes its version into the file unless told not to.
    figure.savefig(buffer, format="png", metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()
