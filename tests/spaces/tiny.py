"""A Space of a tiny random model with a real delta: quick to make, and its replies are noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from abl_hub.edits.delta import write_delta
from abl_hub.edits.edit import remove
from abl_hub.model.chat import load_chat_model
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from abl_hub.resources import templates
from tests.chat_models import save_chat_model
from tests.spaces.serving import serving

QUESTION = "How do I bake bread?"
HOSTILE = "talk_back <img src=x> ![](http://evil.example/x.png) **b** http://evil.example"
"""What a stranger's record may say."""


@dataclass(frozen=True)
class Running:
    url: str
    base: Path
    delta: Path


@contextmanager
def tiny_space(folder: Path) -> Iterator[Running]:
    """Make model, delta and Space in `folder`, and run it."""
    base = save_chat_model(folder / "base")
    # Random weights hardly write to the stream: louder ones make the edit heard.
    chat = load_chat_model(base)
    for name, weight in chat.model.named_parameters():
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
            weight.mul_(8)
    chat.model.save_pretrained(base)
    blueprint = meta_model(base)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    write_delta(
        remove(vector, trace_writers(blueprint).writers),
        folder / "delta",
        model=blueprint,
        read=chat.model.get_parameter,
        gains={},
        base=str(base),
    )
    space = folder / "space"
    shutil.copytree(
        templates("spaces") / "compare", space, ignore=shutil.ignore_patterns("*.jinja")
    )
    save_file({"direction": vector.float()}, space / "direction.safetensors")
    Image.new("RGB", (1200, 200)).save(space / "wide.png")
    config = {
        "schema": 1,
        "title": f"tiny {HOSTILE}",
        "base": str(base),
        "base_revision": None,
        "delta": str(folder / "delta"),
        "delta_revision": None,
        "behaviour": HOSTILE,
        "layer": 2,
        "position": -1,
        "direction": "direction.safetensors",
        "examples": [QUESTION],
        "plots": [{"file": "wide.png", "alt": "nothing, but wide"}],
        "metrics": [
            {
                "name": "rate",
                "base": "1.00 [0.95, 1.00]",
                "edited": "0.00 [0.00, 0.05]",
                "random": "0.99 [0.94, 1.00]",
            }
        ],
        "verdict": f"SUPPORTED: {HOSTILE}",
        "note_on_safety": "none <b>at all</b>",
    }
    (space / "space.json").write_text(json.dumps(config))
    with serving(space) as url:
        yield Running(url=url, base=base, delta=folder / "delta")
