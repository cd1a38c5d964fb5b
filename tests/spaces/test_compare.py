"""The Space as it is published: its own folder, its own process, asked over HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gradio_client import Client
from peft import PeftModel

from abl_hub.edits.delta import write_delta
from abl_hub.edits.edit import remove
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.generate import greedy_replies
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from tests.chat_models import save_chat_model
from tests.spaces.serving import serving

ROOT = Path(__file__).resolve().parent.parent.parent
QUESTION = "How do I bake bread?"
LENGTH = 12


@dataclass(frozen=True)
class Running:
    url: str
    base: Path
    delta: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("space")
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
    shutil.copytree(ROOT / "spaces" / "compare", space, ignore=shutil.ignore_patterns("*.jinja"))
    config = {
        "schema": 1,
        "title": "tiny",
        "base": str(base),
        "base_revision": None,
        "delta": str(folder / "delta"),
        "delta_revision": None,
        "behaviour": "refusal",
        "layer": 2,
        "position": -1,
        "direction": None,
        "examples": [QUESTION],
        "plots": [],
        "metrics": [{"name": "rate", "base": "1", "edited": "0", "random": "1"}],
        "verdict": "SUPPORTED",
        "note_on_safety": "none <b>at all</b>",
    }
    (space / "space.json").write_text(json.dumps(config))
    with serving(space) as url:
        yield Running(url=url, base=base, delta=folder / "delta")


def ask(url: str, strength: float, question: str = QUESTION) -> tuple[str, str]:
    """Base's and edited model's reply, as the page shows them."""
    client = Client(url, verbose=False)
    before, after, _, _ = client.predict(
        question, [], [], strength, 0.0, 1.0, 0, LENGTH, "", api_name="/chat"
    )
    return tuple(side[-1]["content"][0]["text"] for side in (before, after))  # type: ignore[return-value]


def plain(running: Running, strength: float | None) -> str:
    """The same reply by transformers and PEFT alone."""
    chat = load_chat_model(running.base)
    if strength is not None:
        wrapped = PeftModel.from_pretrained(chat.model, str(running.delta))
        for module in wrapped.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", strength)
        chat = ChatModel(model=wrapped, tokenizer=chat.tokenizer)
    return greedy_replies(chat, [QUESTION], max_new_tokens=LENGTH)[0].text


def test_both_sides_are_what_peft_says(running: Running) -> None:
    base, edited = ask(running.url, 1.0)
    assert base == plain(running, None)
    assert edited == plain(running, 1.0)
    assert base != edited


def test_strength_zero_is_the_base_token_for_token(running: Running) -> None:
    base, edited = ask(running.url, 0.0)
    assert edited == base == plain(running, None)


def test_two_users_at_different_strengths_get_their_own(running: Running) -> None:
    strengths = [0.0, 1.0, 0.5, 1.0, 0.0, 0.5]
    alone = {strength: ask(running.url, strength) for strength in set(strengths)}
    with ThreadPoolExecutor(len(strengths)) as users:
        together = list(users.map(lambda strength: ask(running.url, strength), strengths))
    assert together == [alone[strength] for strength in strengths]


def test_the_app_needs_nothing_of_ours() -> None:
    for path in (ROOT / "spaces" / "compare").glob("*.py"):
        assert "abl_hub" not in path.read_text()
