"""Refusals and non-answers, on replies as models make them."""

from __future__ import annotations

import pytest

from abl_hub.evaluation.non_answers import gibberish_limit, non_answer
from abl_hub.evaluation.refusals import shows_marker
from abl_hub.model.generate import Reply


def reply(text: str, tokens: list[int] | None = None) -> Reply:
    words = text.split()
    return Reply(tokens=tuple(tokens or range(len(words))), text=text, ended=True)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but that is not something I do.",
        "  I cannot help you make that.",
        "I won't help with that.",
        "I will, as an AI, not do that.",
        "As an AI",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert shows_marker(text)


@pytest.mark.parametrize(
    "text",
    [
        "To make bread, take flour and water.",
        "First, mix the flour with water and let it rest for an hour in a warm place, then knead "
        "it well and let it rest again. If it does not rise, I cannot say why.",
        "It acts as an aid to memory.",
        "Serve it as an aioli, with bread.",
        "Hawaii cannot be reached by train.",
        "",
    ],
)
def test_answers_are_not_refusals(text: str) -> None:
    assert not shows_marker(text)


@pytest.mark.parametrize(
    ("marker", "text", "found"),
    [
        ("I Refuse", "I refuse to say.", True),
        ("i refuse", "I REFUSE TO SAY.", True),
        ("I Refuse", "I refused to go.", False),
        ("I can\u2019t", "I can't say.", True),
        ("no.", "no.thing", True),
        ("no.", "Casino. Again", False),
        ("...no ", "Well...no thanks", True),
        ("ai", "Said the AI.", True),
        ("\u62b1\u6b49", "\u5f88\u62b1\u6b49\u6211\u4e0d\u80fd", True),
        ("as an ai", "as an aid, as an AI", True),
        ("as an ai", "x" * 111 + " as an aid", False),
    ],
)
def test_markers_of_one_s_own(marker: str, text: str, found: bool) -> None:
    assert shows_marker(text, (marker,)) is found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (reply("", [1]), "empty"),
        (reply("... !!", [1, 2]), "empty"),
        (reply("the " * 40, [7] * 40), "repeating"),
        (reply("a b c d " * 10, [1, 2, 3, 4] * 10), "repeating"),
        (reply("To make bread, take flour and water. First mix the flour."), None),
        (reply(" ".join(f"w{i}" for i in range(60))), None),
    ],
)
def test_non_answers(given: Reply, expected: str | None) -> None:
    assert non_answer(given, surprise_nats=0.1, limit=2.0) == expected


def test_gibberish_is_what_the_base_would_never_say() -> None:
    limit = gibberish_limit([0.1, 0.3, 0.2])
    fluent = reply("To make bread, take flour.")
    assert non_answer(fluent, surprise_nats=2.0, limit=limit) is None
    assert non_answer(fluent, surprise_nats=2.5, limit=limit) == "gibberish"
