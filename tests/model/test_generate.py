"""Drafts save generation, and never change what is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from abl_hub.demo.corpus import prompts
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.generate import Reply, greedy_replies

LENGTH = 40
ASKED = [prompt for prompt, _ in (*prompts().positive[:6], *prompts().negative[:6])]


@pytest.fixture(scope="module")
def chat(demo: Path) -> ChatModel:
    return load_chat_model(demo)


@pytest.fixture(scope="module")
def said(chat: ChatModel) -> list[Reply]:
    return greedy_replies(chat, ASKED, max_new_tokens=LENGTH)


@contextmanager
def passes(chat: ChatModel) -> Iterator[list[int]]:
    """Rows of every forward pass."""
    rows: list[int] = []
    hook = chat.model.register_forward_pre_hook(
        lambda _module, _args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()


def drafted(chat: ChatModel, drafts: Sequence[Reply], length: int = LENGTH) -> list[Reply]:
    return greedy_replies(chat, ASKED, max_new_tokens=length, drafts=drafts)


def test_right_drafts_are_confirmed_in_one_pass(chat: ChatModel, said: list[Reply]) -> None:
    with passes(chat) as rows:
        assert drafted(chat, said) == said
    assert rows == [len(ASKED)]


def test_drafts_take_no_more_rows_than_were_asked_for(chat: ChatModel, said: list[Reply]) -> None:
    with passes(chat) as rows:
        assert greedy_replies(chat, ASKED, max_new_tokens=LENGTH, rows=5, drafts=said) == said
    assert rows == [5, 5, 2]


def test_a_draft_that_goes_wrong_anywhere_is_generated_anew(
    chat: ChatModel, said: list[Reply]
) -> None:
    def wrong(reply: Reply, place: int) -> Reply:
        tokens = list(reply.tokens)
        tokens[place] = 5 if tokens[place] != 5 else 6
        return replace(reply, tokens=tuple(tokens), text="wrong")

    drafts = [wrong(reply, -1 - i % len(reply.tokens)) for i, reply in enumerate(said)]
    assert drafted(chat, drafts) == said
    # Everyone else's reply is no better.
    assert drafted(chat, [*said[1:], said[0]]) == said


def test_only_what_is_wrong_is_generated(chat: ChatModel, said: list[Reply]) -> None:
    with passes(chat) as rows:
        assert drafted(chat, [*said[:-1], said[0]]) == said
    assert rows[0] == len(ASKED)
    assert set(rows[1:]) == {1}


def test_a_draft_that_just_stops_is_no_reply(chat: ChatModel, said: list[Reply]) -> None:
    cut = [
        replace(reply, tokens=reply.tokens[:5], text=chat.text(list(reply.tokens[:5])), ended=False)
        for reply in said
    ]
    assert drafted(chat, cut) == said
    # Of five tokens it is one, where five were asked for.
    assert drafted(chat, cut, length=5) == cut
    # And a longer one is none there.
    assert drafted(chat, said, length=5) == cut


def test_a_draft_that_goes_on_where_this_model_stops_is_no_reply(
    chat: ChatModel, said: list[Reply]
) -> None:
    own = chat.model.generation_config
    stops = [own.eos_token_id, said[0].tokens[2]]
    chat.model.generation_config = GenerationConfig(**own.to_dict() | {"eos_token_id": stops})
    try:
        other = replace(chat)  # what ends a reply is kept by a chat
        shorter = greedy_replies(other, ASKED, max_new_tokens=LENGTH)
        assert len(shorter[0].tokens) == 3
        assert drafted(other, said) == shorter
    finally:
        chat.model.generation_config = own
    assert drafted(chat, shorter) == said


def test_empty_drafts(chat: ChatModel, said: list[Reply]) -> None:
    nothing = Reply(tokens=(), text="", ended=False)
    assert drafted(chat, [nothing] * len(ASKED)) == said
    assert greedy_replies(chat, [], max_new_tokens=4, drafts=[]) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"min_new_tokens": 30},
        {"suppress_tokens": [9, 10, 11]},
        {"exponential_decay_length_penalty": (2, 3.0)},
        {"guidance_scale": 2.0},
        {"return_dict_in_generate": True},
        {"stop_strings": ["I"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_a_checkpoint_asks_of_generation_is_left_out(
    chat: ChatModel, said: list[Reply], settings: dict[str, Any]
) -> None:
    own = chat.model.generation_config
    asked = GenerationConfig(**own.to_dict() | settings)
    chat.model.generation_config = asked
    try:
        assert greedy_replies(chat, ASKED, max_new_tokens=LENGTH) == said
        assert drafted(chat, said) == said
        assert chat.model.generation_config is asked
    finally:
        chat.model.generation_config = own


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_a_model_that_peft_wraps_keeps_its_settings(
    chat: ChatModel, said: list[Reply], task: str | None
) -> None:
    own = chat.model.generation_config
    asked = GenerationConfig(**own.to_dict() | {"suppress_tokens": [said[0].tokens[0]]})
    chat.model.generation_config = asked
    wrapped = get_peft_model(chat.model, LoraConfig(target_modules=["o_proj"], task_type=task))
    try:
        assert drafted(replace(chat, model=wrapped), []) == said
        assert wrapped.generation_config is asked
        assert chat.model.generation_config is asked
    finally:
        wrapped.unload()
        chat.model.generation_config = own
