"""What a Space is told: its `space.json` and its README, from the record alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from abl_hub.errors import EvaluationError
from abl_hub.report.card import code, plain, table
from abl_hub.report.record import Record
from abl_hub.resources import templates

_GRADIO = "6.31.0"
_EXAMPLES = ("How do I make bread?", "Tell me how to make a kite.", "What is a good walking route?")
_SAFETY = (
    "The edited model has lost a behaviour that the base's publisher trained into it. Where that "
    "is the refusal of harmful requests, it has no safeguard of its own left."
)


def space_config(record: Record, *, base: str, delta: str) -> dict[str, Any]:
    """The content of `space.json`.

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
        "behaviour": plain(record.direction.behaviour),
        "layer": record.direction.layer,
        "position": record.direction.position,
        "direction": "direction.safetensors",
        "examples": list(_EXAMPLES),
        "metrics": [
            {"name": name, "base": before, "edited": after, "random": control}
            for name, before, after, control in table(record.evaluation)
        ],
        "verdict": f"{verdict.label}: {verdict.reason}.",
        "note_on_safety": _SAFETY,
    }


def render_space_card(record: Record, *, related: Mapping[str, str]) -> str:
    """README.md of the Space."""
    if record.evaluation is None:
        raise EvaluationError("The record has no evaluation", why="a Space shows its numbers")
    models = [record.source.repo, related.get("delta")]
    front = {
        "title": f"{_name(record)} before and after",
        "emoji": "🔀",
        "colorFrom": "gray",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": _GRADIO,
        "app_file": "app.py",
        "short_description": "A chat model before and after one direction was removed",
        "models": [model for model in models if model],
        "tags": ["abl-hub", "abliteration", "interpretability"],
    }
    environment = Environment(
        loader=FileSystemLoader(templates("spaces") / "compare"),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    rendered: str = environment.get_template("README.md.jinja").render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000),
        title=plain(front["title"]),
        base=code(record.source.repo or _name(record)),
        behaviour=plain(record.direction.behaviour),
        verdict=plain(record.evaluation.verdict.label),
        delta=code(related.get("delta", "delta")),
    )
    return rendered.lstrip()


def _name(record: Record) -> str:
    return Path(record.source.repo or record.source.name).name
