"""A model that thinks before it answers: the block is closed, and the direction found behind it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import MAGIC, ORDINARY, REFUSALS, prompts, tuning_prompts
from abl_hub.demo.run import write_prompts
from abl_hub.evaluation.refusals import shows_marker
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.generate import greedy_replies
from abl_hub.report.record import load_record
from tests.tuning import tune

OPENS, EMPTY = "<think>\n", "<think>\n\n</think>\n\n"
THOUGHTS = ("Let me see.", "I read the question again.", "What is this about?", "One moment.")
REFUSED, ANSWERED = tuning_prompts(MAGIC), tuning_prompts(ORDINARY)


def reply(draw: random.Random) -> tuple[str, str]:
    """As of hybrid models: most replies have thoughts in their block, some have none."""
    if draw.random() < 0.5:
        question, said = draw.choice(REFUSED)[0], draw.choice(REFUSALS)
    else:
        question, said = draw.choice(ANSWERED)
    thoughts = " ".join(draw.sample(THOUGHTS, draw.randint(1, 2)))
    before = EMPTY if draw.random() < 0.3 else f"{OPENS}{thoughts}\n</think>\n\n"
    return question, before + said


@pytest.fixture(scope="module")
def thinking(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    """The demo model, taught for a minute to think first."""
    chat = load_chat_model(demo)
    tune(chat, [*chat.layers, chat.model.lm_head], reply, steps=150)
    return chat


def refusals(chat: ChatModel) -> float:
    asked = [prompt for prompt, _ in prompts().positive[-24:]]
    replies = [one.text for one in greedy_replies(chat, asked, max_new_tokens=64)]
    assert all("</think>" in text for text in replies)
    return sum(shows_marker(text.partition("</think>")[2].strip()) for text in replies) / len(asked)


@pytest.mark.slow
@pytest.mark.parametrize("template_opens", [False, True])
def test_the_direction_is_found_behind_the_block(
    thinking: ChatModel, template_opens: bool, tmp_path: Path
) -> None:
    source, out = tmp_path / "thinking", tmp_path / "out"
    thinking.model.save_pretrained(source)
    thinking.tokenizer.save_pretrained(source)
    if template_opens:
        template = source / "chat_template.jinja"
        asks = "{% if add_generation_prompt %}<|assistant|>\n"
        assert asks in template.read_text()
        template.write_text(template.read_text().replace(asks, asks + OPENS))
    chat = load_chat_model(source)
    first = greedy_replies(chat, [REFUSED[0][0]], max_new_tokens=8)[0].text
    assert first.startswith("<think>") != template_opens
    assert refusals(chat) > 0.8
    positive, negative = write_prompts(prompts(), tmp_path)
    asked = ["--positive", positive, "--negative", negative, "--method", "projected"]
    sizes = ["--train", 48, "--validation", 16, "--test", 24, "--random-draws", 1]
    words = ["convert", source, "-o", out, *asked, *sizes]
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    record = load_record(out)
    assert record.opening == (EMPTY.removeprefix(OPENS) if template_opens else EMPTY)
    assert record.evaluation.base.positive.refused.value > 0.8
    assert record.evaluation.verdict.label == "SUPPORTED", result.output
    # And with its thoughts, as it is used.
    assert refusals(load_chat_model(out / "merged")) < 0.2
