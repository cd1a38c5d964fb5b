"""The Space as it is published: its own folder, its own process, asked over HTTP."""

from __future__ import annotations

import html
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

from gradio_client import Client
from markdown_it import MarkdownIt
from peft import PeftModel

from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.generate import greedy_replies
from tests.spaces.tiny import HOSTILE, QUESTION, Running

ROOT = Path(__file__).resolve().parent.parent.parent
LENGTH = 12


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


def test_a_strangers_words_stay_text(running: Running) -> None:
    with urlopen(f"{running.url}/config") as answer:
        components = json.load(answer)["components"]
    shown = {kind: [] for kind in ("markdown", "html")}
    for component in components:
        if component["type"] in shown:
            shown[component["type"]].append(component["props"].get("value") or "")
    pages = [MarkdownIt("gfm-like", {"linkify": False}).render(text) for text in shown["markdown"]]
    pages += shown["html"]
    assert sum(html.escape(HOSTILE) in page for page in pages) == 4, pages
    for page in pages:
        assert not re.search(r'<img src="?[xh]|<a |<b>', page.replace("none <b>", "")), page


def test_the_app_needs_nothing_of_ours() -> None:
    for path in (ROOT / "spaces" / "compare").glob("*.py"):
        assert "abl_hub" not in path.read_text()
