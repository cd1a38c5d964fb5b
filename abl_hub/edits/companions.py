"""The files beside the weights: which of them an edited checkpoint keeps, and the untied config.

Kept: config, tokenizer, chat template, processor, licence, notice, use policy. Left: the base's
README (its card is not ours), pickles, other forms of the weights. Knows names and JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abl_hub.edits.shards import CONFIG, read_json

_LEGAL = ("license", "licence", "notice", "copying", "use_policy", "usage_policy", "terms")
_LEGAL_SUFFIXES = ("", ".txt", ".md", ".rst", ".html", ".pdf")
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe")
_TEMPLATES = "additional_chat_templates"


def companions(folder: Path) -> Iterator[str]:
    """Names of the files to keep, relative to `folder`; `config.json` is not among them."""
    wanted: tuple[str, ...] = _SUFFIXES
    if "auto_map" in read_json(folder, CONFIG):
        wanted += (".py",)  # the config names its own code, which is copied and never run
    for file in sorted(folder.iterdir()):
        name = file.name.lower().replace("-", "_").replace(" ", "_")
        if not file.is_file() or file.name.startswith(".") or name == CONFIG:
            continue
        legal = name.startswith(_LEGAL) and Path(name).suffix in _LEGAL_SUFFIXES
        needed = name.endswith(wanted) and not name.endswith(".index.json")
        if legal or (needed and not name.startswith("readme")):
            yield file.name
    templates = folder / _TEMPLATES
    if templates.is_dir():
        yield from (f"{_TEMPLATES}/{file.name}" for file in sorted(templates.glob("*.jinja")))


def untied(config: dict[str, Any], text_config: str | None) -> dict[str, Any]:
    """A config.json whose head is a matrix of its own.

    Args:
        text_config: the attribute of a wrapper's config that describes its language model.
    """
    changed = {**config, "tie_word_embeddings": False}
    if text_config is not None:
        nested = config.get(text_config) or {}
        changed[text_config] = {**nested, "tie_word_embeddings": False}
    return changed


def json_text(content: dict[str, Any]) -> str:
    """As transformers writes its JSON files."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
