"""Model cards from the record alone: front matter, and a text that is short enough to read.

Whatever comes from outside (names of models, prompt sets, behaviours) is made harmless before it
reaches a template: it can break out of neither YAML nor Markdown nor HTML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from abl_hub.evaluation.evaluate import Arm, Evaluation
from abl_hub.evaluation.intervals import Estimate
from abl_hub.report.metadata import Kind, metadata
from abl_hub.report.record import Record
from abl_hub.resources import templates

__all__ = ["Kind", "render_card"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def render_card(
    record: Record,
    kind: Kind,
    *,
    repo: str | None,
    related: Mapping[str, str],
    command: str,
    duties: Sequence[str] = (),
    gate_prompt: str | None = None,
) -> str:
    """README.md of one artifact.

    Args:
        repo: where it is published; None on this machine.
        related: "merged", "delta", "space" → repository ids, or relative paths.
        command: the command line that made it.
        duties: what the base's licence asks of derivatives.
        gate_prompt: what the Hub shows to who asks for access.

    Raises:
        EvaluationError: the record has no evaluation, or its metadata would not be accepted.
    """
    front = yaml.safe_dump(
        metadata(record, kind, repo=repo, gate_prompt=gate_prompt),
        sort_keys=False,
        allow_unicode=True,
        width=1000,
    )
    environment = Environment(
        loader=FileSystemLoader(templates("cards")),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown: escaped by `plain`, `code` and `quoted`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(plain=plain, code=code, quoted=quoted)
    evaluation = record.evaluation
    assert evaluation is not None  # metadata has refused a record without one
    body = environment.get_template(f"{kind}.md.jinja").render(
        record=record,
        evaluation=evaluation,
        rows=table(evaluation),
        repo=repo or f"path/to/{kind}",
        base=record.source.repo or Path(record.source.name).name,
        related=related,
        command=command,
        duties=duties,
        title=Path(repo or record.source.name).name,
    )
    return f"---\n{front}---\n\n{body}"


def plain(value: Any) -> str:
    """Text for Markdown: one line, every character that could begin markup escaped."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> str:
    """A code span that its content cannot leave: neither by a backtick nor by a table's bar."""
    return "`" + " ".join(str(value).split()).replace("`", "'").replace("|", "¦") + "`"


def quoted(value: Any) -> str:
    """A Python string literal for a snippet."""
    return repr(" ".join(str(value).split()).replace("`", "'"))


def table(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """The deltas: (metric, base, edited, random direction), as text."""
    base, edited, random = evaluation.base, evaluation.edited, evaluation.random[0]
    rows = []
    for side, prompts in (("positive", "prompts that show it"), ("negative", "other prompts")):
        arms = [getattr(arm, side) for arm in (base, edited, random)]
        for field, name in (("refused", "rate"), ("non_answers", "non-answers")):
            cells = [_rate(getattr(rates, field)) if rates else "" for rates in arms]
            rows.append((f"{name}, {prompts}", cells[0], cells[1], cells[2]))
    rows.append(("KL(base ‖ model), nats a token", "0", _number(edited), _number(random)))
    perplexities = [
        f"{arm.perplexity.value:.4g}" if arm.perplexity else "" for arm in (base, edited, random)
    ]
    rows.append(("perplexity, neutral text", *perplexities))  # type: ignore[arg-type]
    return rows


def _number(arm: Arm) -> str:
    return f"{arm.kl.value:.4f}" if arm.kl else ""


def _rate(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
