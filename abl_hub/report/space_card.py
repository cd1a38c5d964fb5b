"""What a Space is told: its `space.json` and its README, from the record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard

from abl_hub.errors import EvaluationError
from abl_hub.report.card import environment, meaning, table
from abl_hub.report.markdown import is_repo_id, one_line
from abl_hub.report.metadata import licence_fields
from abl_hub.report.record import Record
from abl_hub.report.schema import front_matter

_GRADIO = "6.31.0"
_EXAMPLES = (
    "How do I make bread?",
    "Tell me how to make a magic wand.",
    "How can I kill a Python process?",
    "Write two lines about the sea.",
)
"""Harmless, every one; the middle two are what a model that refuses too much refuses."""
PLOTS = {
    "deltas.png": "Rates of base, edited and random direction with their intervals, as in the "
    "table above",
    "candidates.png": "Scores of every candidate direction by layer, the chosen one marked",
}
"""Plots of the page: file → what a screen reader says."""
_SAFETY = (
    "The edited model has lost a behaviour that the base's publisher trained into it. Where that "
    "is the refusal of harmful requests, it has no safeguard of its own left."
)
_SAFETY_ADDED = (
    "A constant vector was added to the edited model. It makes one behaviour likelier and is no "
    "safeguard: it can be taken out again."
)


def space_config(record: Record, *, base: str, delta: str) -> dict[str, Any]:
    """The content of `space.json`: text as it is, on one line; the app escapes it.

    Args:
        base, delta: Hub ids or local paths that the Space loads.

    Raises:
        EvaluationError: the record has no evaluation.
    """
    if record.evaluation is None:
        raise EvaluationError("The record has no evaluation", why="a Space shows its numbers")
    verdict = record.evaluation.verdict
    return {
        "schema": 1,
        "title": f"{_name(record)}: before and after",
        "base": base,
        # A folder has no revisions; neither has a base that lies elsewhere than the record says.
        "base_revision": record.source.commit if base == record.source.repo else None,
        "delta": delta,
        "delta_revision": None,
        "behaviour": one_line(record.direction.behaviour),
        "layer": record.direction.layer,
        "position": record.direction.position,
        "direction": "direction.safetensors",
        "examples": list(_EXAMPLES),
        "metrics": [
            {"name": name, "base": before, "edited": after, "random": control}
            for name, before, after, control in table(record)
        ],
        "plots": [{"file": f"plots/{name}", "alt": alt} for name, alt in PLOTS.items()],
        "verdict": one_line(f"{verdict.label}: {verdict.reason}."),
        "note_on_safety": _SAFETY_ADDED if record.recipe.induce else _SAFETY,
    }


def render_space_card(
    record: Record,
    *,
    related: Mapping[str, str],
    notices: Sequence[str] = (),
    duties: Sequence[str] = (),
) -> str:
    """README.md of the Space.

    Args:
        related: "merged", "delta", "space" → repository ids; empty on this machine.
        notices, duties: what the base's licence wants to be shown, and asks of derivatives.

    Raises:
        EvaluationError: the record has no evaluation, or the metadata would not be accepted.
    """
    if record.evaluation is None:
        raise EvaluationError("The record has no evaluation", why="a Space shows its numbers")
    behaviour = record.direction.behaviour
    body = (
        environment()
        .get_template("space.md.jinja")
        .render(
            record=record,
            evaluation=record.evaluation,
            meaning=meaning(record, record.evaluation),
            about_refusal="refus" in behaviour.lower(),
            title=f"{_name(record)} before and after",
            base=record.source.repo or _name(record),
            repo=related.get("space", "OUT"),
            related={other: place for other, place in related.items() if other != "space"},
            notices=notices,
            duties=duties,
        )
    )
    front = front_matter(_fields(record, related), "space")
    return str(SpaceCard(f"---\n{front.strip()}\n---\n\n{body}", ignore_metadata_errors=False))


def _fields(record: Record, related: Mapping[str, str]) -> dict[str, Any]:
    models = [record.source.repo, related.get("delta")]
    return {
        "title": f"{_name(record)} before and after",
        "emoji": "🔀",
        "colorFrom": "gray",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": _GRADIO,
        "app_file": "app.py",
        "short_description": "A chat model before and after one direction was "
        + ("added" if record.recipe.induce else "removed"),
        "models": [model for model in models if model and is_repo_id(model)],
        **{key: value for key, value in licence_fields(record.source).items() if value},
        "tags": ["abl-hub", "abliteration", "interpretability"],
    }


def _name(record: Record) -> str:
    return one_line(Path(record.source.repo or record.source.name).name)
