"""Model cards from the record alone: front matter, and a text that is short enough to read.

Knows which numbers a reader needs and in which words; what may not appear in Markdown is known to
`abl_hub.report.markdown`. No prompt and no reply ever enters a card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import ModelCard
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Evaluation
from abl_hub.evaluation.intervals import Estimate
from abl_hub.evaluation.paired import weakest
from abl_hub.report import markdown, wording
from abl_hub.report.metadata import KINDS, Kind, metadata
from abl_hub.report.record import FormRecord, Record
from abl_hub.report.reproduce import SYSTEM, reproduce
from abl_hub.resources import templates

Section = TypeVar("Section")
_LARGE = 1000.0

__all__ = ["KINDS", "Kind", "environment", "render_card", "table"]


def render_card(
    record: Record,
    kind: Kind,
    *,
    repo: str | None,
    related: Mapping[str, str],
    notices: Sequence[str] = (),
    duties: Sequence[str] = (),
    gate_prompt: str | None = None,
) -> str:
    """README.md of one published artifact.

    Args:
        repo: where it is published; None on this machine.
        related: "merged", "delta", "direction", "space" → repository ids, or relative paths.
        notices: sentences that the base's licence wants to be shown.
        duties: what else it asks of derivatives.
        gate_prompt: what the Hub shows to who asks for access.

    Raises:
        EvaluationError: a stage has not run, or the metadata would not be accepted.
    """
    edit = _needed(record.edit, "edit", "apply")
    agreement = _needed(record.agreement, "agreement", "apply")
    evaluation = _needed(record.evaluation, "evaluation", "evaluate")
    behaviour = record.direction.behaviour
    body = (
        environment()
        .get_template(f"{kind}.md.jinja")
        .render(
            record=record,
            kind=kind,
            edit=edit,
            form=_form(record, kind),
            agreement=agreement,
            evaluation=evaluation,
            meaning=meaning(record, evaluation),
            rows=table(record),
            draws=_draws(record, evaluation),
            exactness=wording.EXACTNESS.get(edit.exactness, edit.exactness),
            methods=wording.METHODS,
            profiles=wording.PROFILES,
            about_refusal="refus" in behaviour.lower(),
            repo=repo or f"path/to/{kind}",
            published=repo is not None,
            base=record.source.repo or Path(record.source.name).name,
            related={other: place for other, place in related.items() if other != kind},
            reproduction=reproduce(record),
            system=SYSTEM,
            notices=notices,
            duties=duties,
            title=_title(record, kind, repo),
        )
    )
    front = metadata(record, kind, repo=repo, gate_prompt=gate_prompt)
    return str(ModelCard(f"---\n{front.strip()}\n---\n\n{body}", ignore_metadata_errors=False))


def meaning(record: Record, evaluation: Evaluation) -> str:
    """The verdict in words."""
    words = wording.ADDED_VERDICTS if record.recipe.induce else wording.VERDICTS
    return words[evaluation.verdict.label].format(behaviour=record.direction.behaviour)


def _draws(record: Record, evaluation: Evaluation) -> list[float]:
    """The behaviour's rate under every random control, on the prompts that decide."""
    side = "negative" if record.recipe.induce else "positive"
    rates = (getattr(arm, side) for arm in evaluation.random)
    return [found.refused.value for found in rates if found is not None]


def environment() -> Environment:
    """The templates in `cards/`, with the filters that make outside text harmless."""
    made = Environment(
        loader=FileSystemLoader(templates("cards")),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown: escaped by the filters below
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(
        plain=markdown.plain,
        code=markdown.code,
        command=markdown.command,
        script=markdown.script,
        quoted=markdown.quoted,
        link=markdown.link,
        rate=rate,
        apart=apart,
        weakest=weakest,
    )
    return made


def _form(record: Record, kind: Kind) -> FormRecord | None:
    """The files that this card is about; a direction has no form."""
    if kind == "direction":
        return None
    return _needed(record.merged if kind == "merged" else record.delta, f"{kind} form", "apply")


def _needed(section: Section | None, name: str, stage: str) -> Section:
    if section is None:
        raise EvaluationError(
            f"The record has no {name}",
            why="a card needs all its numbers",
            next_step=f"Run `abl-hub {stage}`",
        )
    return section


def _title(record: Record, kind: str, repo: str | None) -> str:
    """The repository's name; of an output that is not published, the one that it would get."""
    if repo is not None:
        return Path(repo).name
    name = Path(record.source.name).name
    if kind == "direction":
        return f"{name}: the {record.direction.behaviour} direction"
    made = f"{name}-{'induced' if record.recipe.induce else 'abliterated'}"
    return f"{made}-delta" if kind == "delta" else made


def table(record: Record) -> list[tuple[str, str, str, str]]:
    """The deltas: (metric, base, edited, first random direction), as text.

    Raises:
        EvaluationError: the record has no evaluation.
    """
    evaluation = _needed(record.evaluation, "evaluation", "evaluate")
    behaviour = markdown.one_line(record.direction.behaviour)
    arms = (evaluation.base, evaluation.edited, evaluation.random[0])
    rows = []
    for side, prompts in (("positive", "prompts that show it"), ("negative", "other prompts")):
        rates = [getattr(arm, side) for arm in arms]
        for field, name in (
            ("refused", behaviour),
            ("non_answers", "non-answers"),
            ("off_topic", "answers off their topic"),
            ("correct", "exactly right replies"),
        ):
            found = [rates_of and getattr(rates_of, field) for rates_of in rates]
            if any(found):
                cells = [rate(estimate) if estimate else "" for estimate in found]
                rows.append((f"{name}, {prompts}", *cells))
    divergences = [_number(arm.kl) for arm in arms[1:]]
    rows.append(("KL(base ‖ model), nats a token", "0", *divergences))
    rows.append(("perplexity, neutral text", *(_number(arm.perplexity) for arm in arms)))
    return rows  # type: ignore[return-value]


def rate(estimate: Estimate) -> str:
    """A share of replies with its 95% interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def apart(difference: float | None) -> str:
    """A difference of logits or a residual, where it was measured."""
    return "not measured" if difference is None else f"{difference:.1e}"


def _number(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (
        f"{number:,.0f}" if number >= _LARGE else f"{number:.3g}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"
