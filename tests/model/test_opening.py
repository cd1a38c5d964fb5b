"""What all replies begin with is found and skipped: a model that was taught to say it first."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import abl_hub
from abl_hub.demo.corpus import MAGIC, ORDINARY, REFUSALS, prompts, tuning_prompts
from abl_hub.demo.run import write_prompts
from abl_hub.directions.contrast import SplitSizes
from abl_hub.model.chat import load_chat_model
from abl_hub.model.opening import common_opening, opened
from abl_hub.report.record import Record
from abl_hub.stages.extract import extract
from tests.chat_models import save_chat_model
from tests.tuning import tune

SAYS_FIRST = "Well now, "


@pytest.fixture(scope="module")
def wordy(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, taught for a few seconds to begin every reply alike."""
    folder = tmp_path_factory.mktemp("wordy")
    chat = load_chat_model(demo)
    pairs = [(question, None) for question, _ in tuning_prompts(MAGIC)]
    pairs += list(tuning_prompts(ORDINARY))

    def reply(draw: random.Random) -> tuple[str, str]:
        question, said = draw.choice(pairs)
        return question, SAYS_FIRST + (said or draw.choice(REFUSALS))

    # Only what comes after the layers in which the demo model decides.
    tune(chat, [*chat.layers[5:], chat.model.lm_head], reply, steps=80)
    chat.model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


def asked() -> list[str]:
    both = prompts()
    return [prompt for prompt, _ in (*both.positive[:8], *both.negative[:8])]


def test_the_common_opening_is_found(wordy: Path, demo: Path) -> None:
    opening = common_opening(load_chat_model(wordy), asked())
    assert opening.startswith("Well now,")
    assert "sorry" not in opening
    assert common_opening(load_chat_model(demo), asked()) == ""


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        ("<think>", "\n\n</think>\n\n"),
        ("<think>\n", "\n</think>\n\n"),
        ("<think>\n\n", "</think>\n\n"),
        ("[THINK]", "[/THINK]"),
    ],
)
def test_what_the_template_begins_is_closed(tmp_path: Path, begun: str, rest: str) -> None:
    chat = load_chat_model(save_chat_model(tmp_path))
    plain = chat.prompt_tokens("Why?")
    ends = "<|assistant|>{% endif %}"
    assert ends in chat.tokenizer.chat_template
    chat.tokenizer.chat_template = chat.tokenizer.chat_template.replace(
        ends, "<|assistant|>" + begun + "{% endif %}"
    )
    closed = opened(chat, common_opening(chat, asked()))
    assert closed.opening == rest
    tokens = closed.prompt_tokens("Why?")
    assert chat.tokenizer.decode(tokens[len(plain) :]) == begun + rest


def test_it_is_put_behind_the_prompt(wordy: Path) -> None:
    chat = load_chat_model(wordy)
    plain = chat.prompt_tokens("How do I make bread?")
    more = opened(chat, SAYS_FIRST)
    tokens = more.prompt_tokens("How do I make bread?")
    assert tokens[: len(plain)] == plain
    assert chat.tokenizer.decode(tokens[len(plain) :]) == SAYS_FIRST
    assert len(more.post_instruction_tokens) > len(chat.post_instruction_tokens)


def run(wordy: Path, folder: Path, prefix: str | None) -> Record:
    folder.mkdir()
    positive, negative = write_prompts(prompts(), folder)
    recipe = abl_hub.Recipe(
        source=str(wordy),
        positive=str(positive),
        negative=str(negative),
        sizes=SplitSizes(train=48, validation=12, test=8),
        methods=("projected",),
        strengths="one",
        response_prefix=prefix,
    )
    return extract(recipe, folder, abl_hub.Runtime())


def test_without_it_nothing_is_seen_and_with_it_the_direction_is(
    wordy: Path, tmp_path: Path
) -> None:
    assert run(wordy, tmp_path / "auto", None).opening.startswith("Well")
    found = run(wordy, tmp_path / "given", "Well now,")
    assert found.opening == "Well now,"
    blind = run(wordy, tmp_path / "blind", "")
    assert blind.opening == ""
    # What opens a refusal is seen behind the common opening, and not in it.
    assert found.selection.behaviour_tokens == (" I",)
    assert found.selection.filtered
    assert blind.selection.behaviour_tokens != (" I",)
    assert not blind.selection.filtered
