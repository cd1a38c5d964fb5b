"""How results look: the tables and sentences that the commands print.

Those of an evaluation are in `show_evaluation`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from abl_hub.cli.output import Output
from abl_hub.cli.show_evaluation import evaluation_lines, rate
from abl_hub.directions.stability import Seeds, Stability
from abl_hub.evaluation.spread import FINDINGS, enough
from abl_hub.report.record import (
    RECORD,
    AgreementRecord,
    AnalysisRecord,
    FormRecord,
    Record,
    StrengthsPoint,
)
from abl_hub.stages.extract import DIRECTION
from abl_hub.stages.forms import DELTA

if TYPE_CHECKING:
    from abl_hub.hub.publish import Published
    from abl_hub.stages.plan import Plan
    from abl_hub.stages.push import Pushed


def show_plan(output: Output, plan: Plan) -> None:
    """What would be done."""
    for name, value in plan.lines:
        output.line(f"{name:<18} {value}")
    output.result(dict(plan.lines).get("writers", ""), dict(plan.lines))


def show_direction(output: Output, record: Record, out: Path) -> None:
    """The selected direction."""
    _direction_lines(output, record)
    output.line(f"Wrote {out}. Next: abl-hub apply {shlex.quote(str(out))}")
    output.result(record.direction.digest, _document(record))


def show_forms(output: Output, record: Record, out: Path) -> None:
    """The written forms and their agreement."""
    _agreement_lines(output, record)
    output.line(f"Wrote {out}. Next: abl-hub evaluate {shlex.quote(str(out))}")
    output.result(str(out), _document(record))


def show_evaluation(output: Output, record: Record) -> None:
    """The table of deltas and the verdict."""
    if record.evaluation is not None:
        evaluation_lines(output, record, record.evaluation)
        output.result(record.evaluation.verdict.label, _document(record))


def show_analysis(output: Output, record: Record) -> None:
    """How the behaviour lies in the stream."""
    analysis = record.analysis
    if analysis is None:
        return
    output.table(
        ["layer", "norm", "to other mean", "separation", "effective rank", "AUC", "accuracy"],
        [
            [
                str(one.layer),
                f"{one.norm:.3g}",
                f"{one.to_ordinary:.2f}",
                "" if one.separation is None else f"{one.separation:.2f}",
                f"{one.effective_rank:.1f}",
                f"{found.detector.auc.value:.3f}",
                rate(found.detector.accuracy),
            ]
            for one, found in zip(analysis.geometry, analysis.detection, strict=True)
        ],
    )
    stability = analysis.stability
    if stability is None:
        output.line("Stability: not measured, of fewer than 4 training prompts a side")
    else:
        output.line(
            f"{_again(record, stability)}: cosine {stability.halves:.3f} between halves of the "
            f"prompts, {stability.bootstrap_median:.3f} (5%: {stability.bootstrap_low:.3f}) "
            "between bootstraps"
        )
    seeds = analysis.seeds
    if seeds is not None:
        output.line(
            f"{_again(record, seeds)}, from {seeds.count} other splits: cosine "
            f"{seeds.cosine_mean:.3f} (least {seeds.cosine_min:.3f}); the same layer separates "
            f"best in {100 * seeds.same_layer:.0f}%"
        )
    base, edited, *several = (f"{value:.1f}" for value in analysis.residual)
    more = f"; without 2, 3 … singular directions: {', '.join(several)}" if several else ""
    output.line(f"Log-odds of the behaviour: {base}; {edited} without what is edited{more}")
    _spread_lines(output, analysis)
    harm = analysis.harm
    output.line(
        f"Recognising against acting: cosine {harm.cosine:.2f}; log-odds {harm.base:.1f}, "
        f"{harm.without_harm:.1f} without the direction at the instruction's last token, "
        f"{harm.without_execution:.1f} without what is edited"
    )
    if analysis.front and record.strengths is not None:
        points, chosen = record.strengths.points, record.strengths.chosen
        output.table(
            ["strengths", "failures", "damage", "KL"],
            [
                [
                    ("one for all" if one.point is None else _fitted_at(points[one.point]))
                    + (" (taken)" if one.point == chosen else ""),
                    f"{one.failures.value:.2f}",
                    f"{one.damage.value:.2f}",
                    f"{one.kl.value:.4f}",
                ]
                for one in analysis.front
            ],
        )
    if analysis.dose:
        output.table(
            ["added", "still without it", "no longer with it", "KL"]
            if record.recipe.induce
            else ["strength", "failures", "damage", "KL"],
            [
                [f"{d.strength:g}", f"{d.failures:.2f}", f"{d.damage:.2f}", f"{d.kl:.4f}"]
                for d in analysis.dose
            ],
        )
    output.result("" if stability is None else f"{stability.halves:.4f}", _document(record))


def _fitted_at(point: StrengthsPoint) -> str:
    return f"fitted, KL weighed {point.kl_weight:.0f}"


_REMOVED = {
    "none": "nothing",
    "edit": "what is edited",
    "single": "one difference in means",
    "successive": "successive differences",
    "singular": "singular directions",
}


def _spread_lines(output: Output, analysis: AnalysisRecord) -> None:
    """What whole replies say without one direction, and without several."""
    if analysis.told is None:
        return
    output.table(
        ["removed", "directions", "layer", "still shown", "non-answers", "damage to others"],
        [
            [
                _REMOVED[one.how],
                str(one.directions),
                "" if one.how == "none" else str(one.layer),
                *(f"{share:.2f}" for share in (one.shown, one.non_answers, one.damage)),
            ]
            for one in analysis.removals
        ],
    )
    output.line(f"{FINDINGS[analysis.told.finding]}: {analysis.told.reason}")


def _again(record: Record, made: Stability | Seeds) -> str:
    """What was made again, in words: the direction, or what stands in for it."""
    direction = record.direction
    if (made.method, made.position) == (direction.method, direction.position):
        return "Direction again"
    where = "the last token" if made.position == -1 else f"position {made.position}"
    return f"The {made.method} difference in means at {where} again, not what is edited"


def show_record(output: Output, record: Record, out: Path, pushed: Pushed | None = None) -> None:
    """Everything that `convert` found out."""
    _direction_lines(output, record)
    _agreement_lines(output, record)
    output.line()
    if record.evaluation is not None:
        evaluation_lines(output, record, record.evaluation)
        if record.evaluated_form == "hooks":
            why = "there is no merged form"
            if "merged" not in record.refused:
                why = "the merged model is not on this disk"
            output.line(f"Evaluated as hooks on the base: {why}")
    output.line()
    if record.analysis is not None:
        _other_try(output, record.analysis)
    names = [f"{name}/" for name in ("merged", "delta", "direction") if (out / name).is_dir()]
    output.line(f"Wrote {out}: {', '.join([*names, DIRECTION, RECORD])}")
    document = {**_document(record), "out": str(out), "published": []}
    if pushed is not None:
        _pushed_lines(output, pushed)
        document |= _pushed(pushed)
    else:
        words = shlex.quote(str(out))
        chat = "" if DELTA in record.refused else f"abl-hub chat {words}, "
        output.line(f"Next: {chat}abl-hub report {words}, abl-hub push {words}")
    output.result(str(out), document)


def _other_try(output: Output, analysis: AnalysisRecord) -> None:
    """What to try instead, where the edit was not enough."""
    told = analysis.told
    if told is None or told.finding == "one":
        return
    output.line(f"{FINDINGS[told.finding]}: {told.reason}")
    if told.directions is None:
        return
    base, *removed = analysis.removals
    way = next(
        one.how for one in removed if one.directions == told.directions and enough(base, one)
    )
    if told.finding == "failed":
        output.line("Next: the same command with --method projected")
    elif way != "edit":
        method = "svd" if way == "singular" else "successive"
        output.line(f"Next: the same command with --method {method} --rank {told.directions}")


def show_pushed(output: Output, pushed: Pushed) -> None:
    """Where things are now, and what came back from there."""
    _pushed_lines(output, pushed)
    output.result("\n".join(item.url for item in pushed.published), _pushed(pushed))


def _direction_lines(output: Output, record: Record) -> None:
    direction = record.direction
    output.line(
        f"Direction for {direction.behaviour}: {direction.method}, layer {direction.layer} of "
        f"{direction.layer_count}, position {direction.position}, norm {direction.norm:.3g}"
    )
    if not record.selection.passed:
        output.note("No candidate met all of the paper's thresholds.")


def _agreement_lines(output: Output, record: Record) -> None:
    if record.edit is None or record.agreement is None:
        return
    agreement = record.agreement
    edited = sum(writer.strength != 0 for writer in record.edit.writers)
    output.line(
        f"Edit: one constant is added, by {record.edit.writers[0].parameter}"
        if record.recipe.induce
        else f"Edit: {record.edit.exactness}, {edited} of {len(record.edit.writers)} writers; "
        + _left(agreement)
    )
    pairs = (
        ("hooks-merged", agreement.hooks_merged),
        ("hooks-delta", agreement.hooks_delta),
        ("merged-delta", agreement.merged_delta),
    )
    if agreement.base_hooks is not None:
        output.line(
            "Agreement on real prompts (largest logit difference; base to edited is "
            f"{agreement.base_hooks:.2g}): "
            + ", ".join(f"{name} {apart:.1e}" for name, apart in pairs if apart is not None)
        )
    for form, why in record.refused.items():
        output.line(f"No {form} form: {why}")
    if record.delta is not None and record.delta.left_out:
        output.line(_left_out(record.delta, agreement))
    if agreement.portable_kl is not None:
        output.line(
            "Delta for transformers and PEFT; one for vLLM, SGLang and llama.cpp too "
            f"(--delta-profile portable) would cost {_cost(agreement.portable_kl, agreement)}"
        )


def _left_out(delta: FormRecord, agreement: AgreementRecord) -> str:
    """What a delta does not edit, and what that costs."""
    first, *others = delta.left_out
    more = f" and {len(others)} more" if others else ""
    if agreement.delta_kl is None:
        return f"The delta leaves out {first}{more}"
    return f"The delta leaves out {first}{more}: {_cost(agreement.delta_kl, agreement)}"


def _cost(kl: float, agreement: AgreementRecord) -> str:
    return f"KL {kl:.1e} nats a token (base to edited: {agreement.edit_kl:.1e})"


def _left(agreement: AgreementRecord) -> str:
    """What the numeric check found."""
    if agreement.residual is not None:
        return f"{agreement.residual:.1e} of the stream is left along the direction"
    if agreement.weights is not None:
        return f"{agreement.weights:.1e} of a weight is left along the direction (not loaded)"
    return "not loaded, so not measured"


def _pushed_lines(output: Output, pushed: Pushed) -> None:
    for item in pushed.published:
        visibility = "private" if item.private else "public"
        state = "published" if item.changed else "already up to date"
        copied = f", {len(item.copied)} files copied from the base" if item.copied else ""
        output.line(f"{item.kind:<6} {item.url} ({visibility}, {state}, {item.commit[:8]}{copied})")
    if pushed.collection is not None:
        output.line(f"collection {pushed.collection}")
    loaded = pushed.loaded_back
    differences = (("merged", loaded.merged_apart), ("base + delta", loaded.delta_apart))
    apart = [f"{name} differs by {value:.1e}" for name, value in differences if value is not None]
    ran = f"; on {loaded.prompts} prompts {', '.join(apart)}" if apart else ""
    output.line(f"Loaded back from the Hub: {loaded.files} files are those of the record{ran}")


def _pushed(pushed: Pushed) -> dict[str, Any]:
    return {
        "published": [
            {**item, "tag": pushed.tags.get(item["repo"])} for item in _published(pushed.published)
        ],
        "collection": pushed.collection,
        "loaded_back": asdict(pushed.loaded_back),
    }


def _published(published: Sequence[Published]) -> list[dict[str, Any]]:
    return [
        {
            "kind": item.kind,
            "repo": item.repo,
            "commit": item.commit,
            "url": item.url,
            "private": item.private,
            "changed": item.changed,
            "copied": item.copied,
        }
        for item in published
    ]


def _document(record: Record) -> dict[str, Any]:
    document: dict[str, Any] = TypeAdapter(Record).dump_python(record, mode="json")
    return document
