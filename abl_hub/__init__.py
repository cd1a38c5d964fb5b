"""abl-hub: find the direction that mediates a behaviour, remove it exactly, measure it, publish it.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abl_hub.directions.direction import Direction
    from abl_hub.edits.edit import Edit, remove
    from abl_hub.errors import AblHubError
    from abl_hub.model.meta import meta_model
    from abl_hub.model.trace import trace_writers
    from abl_hub.report.recipe import Recipe
    from abl_hub.report.record import Record, load_record
    from abl_hub.stages.apply import apply
    from abl_hub.stages.card import write_cards
    from abl_hub.stages.convert import convert
    from abl_hub.stages.evaluate import evaluate
    from abl_hub.stages.extract import extract
    from abl_hub.stages.push import push
    from abl_hub.stages.runtime import Runtime

__version__ = "0.1.0"

_HOMES = {
    "AblHubError": "abl_hub.errors",
    "Direction": "abl_hub.directions.direction",
    "Edit": "abl_hub.edits.edit",
    "Recipe": "abl_hub.report.recipe",
    "Record": "abl_hub.report.record",
    "Runtime": "abl_hub.stages.runtime",
    "apply": "abl_hub.stages.apply",
    "convert": "abl_hub.stages.convert",
    "evaluate": "abl_hub.stages.evaluate",
    "extract": "abl_hub.stages.extract",
    "load_record": "abl_hub.report.record",
    "meta_model": "abl_hub.model.meta",
    "push": "abl_hub.stages.push",
    "remove": "abl_hub.edits.edit",
    "trace_writers": "abl_hub.model.trace",
    "write_cards": "abl_hub.stages.card",
}

__all__ = [
    "AblHubError",
    "Direction",
    "Edit",
    "Recipe",
    "Record",
    "Runtime",
    "__version__",
    "apply",
    "convert",
    "evaluate",
    "extract",
    "load_record",
    "meta_model",
    "push",
    "remove",
    "trace_writers",
    "write_cards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'abl_hub' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
