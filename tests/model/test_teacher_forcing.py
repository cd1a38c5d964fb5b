"""Logits of a batch stay within the budget, whoever asks, and likelihoods do not depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from abl_hub.demo.corpus import prompts
from abl_hub.evaluation.likelihood import kl_over_replies
from abl_hub.evaluation.non_answers import surprise
from abl_hub.evaluation.subject import Subject
from abl_hub.model import teacher_forcing
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.generate import Reply, continuations, greedy_replies
from abl_hub.model.teacher_forcing import LOGIT_BYTES, token_log_probs
from tests.chat_models import save_chat_model

WORDS = 2**20
"""So many that the logits of 128 tokens are as much as is allowed."""
LENGTHS = (150, 30, 31, 34)
ASKED = [f"How do I bake {number}?" for number in range(len(LENGTHS))]
SAID = [
    Reply(tokens=tuple(20 + (7 * i + n) % 200 for i in range(length)), text="…", ended=False)
    for n, length in enumerate(LENGTHS)
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("wide")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    return load_chat_model(save_chat_model(folder, vocab_size=WORDS, **size))


@contextmanager
def watched(chat: ChatModel) -> Iterator[list[tuple[int, int]]]:
    """Of every forward pass its rows, and the bytes of logits that there are after it."""
    seen: list[tuple[int, int]] = []
    made: list[tuple[StorageWeakRef, int]] = []

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        storage = output.logits.untyped_storage()
        made.append((StorageWeakRef(storage), storage.nbytes()))
        alive = sum(size for one, size in made if not one.expired())
        seen.append((len(output.logits), alive))

    hook = chat.model.register_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def within(seen: list[tuple[int, int]]) -> bool:
    return len(seen) > 1 and all(alive <= LOGIT_BYTES for _, alive in seen)


def test_surprise_stays_within_the_budget_and_is_that_of_each_reply(wide: ChatModel) -> None:
    with watched(wide) as seen:
        together = surprise(wide, ASKED, SAID)
    assert within(seen)
    # The short ones share a batch, the long one is cut.
    assert [rows for rows, _ in seen] == [3, 1, 1]
    alone = [surprise(wide, [asked], [said])[0] for asked, said in zip(ASKED, SAID, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_reply_that_is_cut_is_as_likely_as_in_one_pass(wide: ChatModel) -> None:
    [one] = continuations(wide, ASKED[:1], SAID[:1])
    [found] = token_log_probs(wide, [one])
    with torch.inference_mode():
        hidden = wide.model.model(input_ids=torch.tensor([one.tokens])).last_hidden_state[0]
        for place, token in enumerate(one.tokens[-one.judged :]):
            logits = wide.model.lm_head(hidden[len(one.tokens) - one.judged - 1 + place])
            assert float(found[place]) == pytest.approx(
                float(logits.log_softmax(-1)[token]), abs=1e-4
            )
    assert len(found) == one.judged == LENGTHS[0]


def test_kl_takes_smaller_batches_of_a_larger_vocabulary_and_is_the_same(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = load_chat_model(demo)

    @contextmanager
    def louder() -> Iterator[None]:
        norm = chat.model.model.norm.weight
        norm.data.mul_(2)
        try:
            yield
        finally:
            norm.data.div_(2)

    def kl() -> tuple[float, list[tuple[int, int]]]:
        base, edited = Subject(chat=chat), Subject(chat=chat, active=louder)
        with watched(chat) as seen:
            return kl_over_replies(base, edited, ASKED, SAID, tokens=100).value, seen

    usual, seen = kl()
    assert [rows for rows, _ in seen] == [4, 4]
    assert usual > 0.1
    # As if the vocabulary were so much larger: one batch does not fit, nor do 100 tokens.
    monkeypatch.setattr(teacher_forcing, "LOGIT_BYTES", seen[0][1] // 6)
    cut, seen = kl()
    assert all(alive <= teacher_forcing.LOGIT_BYTES for _, alive in seen)
    assert {rows for rows, _ in seen} == {1, 2}
    assert cut == pytest.approx(usual, rel=1e-4)


def test_drafts_are_confirmed_within_the_budget(wide: ChatModel) -> None:
    said = greedy_replies(wide, ASKED[:3], max_new_tokens=50)
    with watched(wide) as seen:
        assert greedy_replies(wide, ASKED[:3], max_new_tokens=50, drafts=said) == said
    assert within(seen)
    assert [rows for rows, _ in seen] == [2, 1]


def test_small_vocabularies_are_judged_in_sixteen_rows(demo: Path) -> None:
    chat = load_chat_model(demo)
    asked = [prompt for prompt, _ in prompts().negative[:40]]
    replies = [replace(SAID[0], tokens=SAID[0].tokens[: 64 - n]) for n in range(40)]
    with watched(chat) as seen:
        surprise(chat, asked, replies)
    assert [rows for rows, _ in seen] == [16, 16, 8]
