"""A default system prompt in the chat template: found, and measured without it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.evaluation.refusals import shows_marker
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.generate import greedy_replies
from abl_hub.report.page import write_report
from abl_hub.report.record import load_record
from abl_hub.stages.evaluate import other_system
from abl_hub.stages.inputs import recorded_prompts

DEFAULT = "Decline"
SMALL = ["--train", "48", "--validation", "8", "--test", "8", "--max-new-tokens", "24"]
SMALL += ["--random-draws", "1", "--strengths", "one", "--method", "projected"]

TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As Qwen2.5's: the first turn is a system turn, whether the conversation has one or not.
QWEN = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<|system|>\n"
    + DEFAULT
    + "<end>\n{% endif %}"
    + TURNS
)


@pytest.fixture(scope="module")
def with_default(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model under a template that has a default system prompt."""
    folder = Path(shutil.copytree(demo, tmp_path_factory.mktemp("model") / "model"))
    (folder / "chat_template.jinja").write_text(QWEN)
    return folder


@pytest.mark.parametrize(
    ("template", "default"),
    [
        (QWEN, DEFAULT),
        ("{{ bos_token }}" + TURNS, None),
        # Insists: an empty system prompt does not keep the default away.
        (
            "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
            "<|system|>\n{{ s or 'Decline' }}<end>\n<|user|>\n{{ messages[-1]['content'] }}<end>\n",
            None,
        ),
        # Writes a heading of its own above any system prompt, as Llama 3.1's date.
        (
            "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
            "<|system|>\nToday\n{{ s }}<end>\n<|user|>\n{{ messages[-1]['content'] }}<end>\n",
            None,
        ),
        # Puts the system prompt before the question, as Mistral's.
        (
            "{% set s = messages[0]['content'] + '\n' if messages[0]['role'] == 'system' else '' %}"
            "<|user|>\n{{ s }}{{ messages[-1]['content'] }}<end>\n",
            None,
        ),
        # Knows no system role, as Gemma's.
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "<|user|>\n{{ messages[0]['content'] }}<end>\n",
            None,
        ),
    ],
)
def test_a_default_system_prompt_is_found(demo: Path, template: str, default: str | None) -> None:
    chat = load_chat_model(demo)
    chat.tokenizer.chat_template = template
    assert chat.default_system == default


def test_which_system_prompt_is_measured_besides(demo: Path, with_default: Path) -> None:
    plain, inserts = load_chat_model(demo), load_chat_model(with_default)
    assert other_system(plain) is None
    assert other_system(replace(plain, system="Be brief.")) == ("none", None)
    assert other_system(inserts) == ("empty", "")
    assert other_system(replace(inserts, system="Be brief.")) == ("empty", "")
    assert other_system(replace(inserts, system="")) == ("default", None)


def refused(chat: ChatModel, asked: tuple[str, ...]) -> float:
    replies = greedy_replies(chat, asked, max_new_tokens=24, rows=16)
    return sum(shows_marker(reply.text) for reply in replies) / len(asked)


def test_convert_measures_with_and_without_the_default(with_default: Path, tmp_path: Path) -> None:
    files = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    words = ["convert", str(with_default), "-o", str(out), *SMALL]
    words += ["--positive", str(files[0]), "--negative", str(files[1]), "--keep-completions"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    record = load_record(out)
    assert record.evaluation is not None
    arms = record.evaluation.system_arms
    assert arms is not None
    assert arms.condition == "empty"
    held_out = recorded_prompts(record, abl_hub.Runtime()).contrast
    for folder, arm, main in (
        (with_default, arms.base, record.evaluation.base),
        (out / "merged", arms.edited, record.evaluation.edited),
    ):
        empty, default = load_chat_model(folder, system=""), load_chat_model(folder)
        for side in ("positive", "negative"):
            asked = getattr(held_out, side).test
            assert getattr(arm, side).refused.value == refused(empty, asked)
            assert getattr(main, side).refused.value == refused(default, asked)
    assert arms.base.positive is not None
    assert arms.edited.positive is not None
    # The default is a strict one: without it the base refuses less, and the edit still works.
    assert record.evaluation.base.positive is not None
    assert arms.base.positive.refused.value < record.evaluation.base.positive.refused.value
    assert arms.edited.positive.refused.value <= arms.base.positive.refused.value - 0.5
    stopped = arms.base.positive.refused.value - arms.edited.positive.refused.value
    test = arms.paired["positive"]
    assert test.only_before - test.only_after == round(stopped * len(held_out.positive.test))
    assert test.p < 0.05
    assert "Refusal with an empty system prompt, prompts that show it: base" in result.stdout
    card = (out / "merged" / "README.md").read_text()
    assert "The table is under the chat template's default system prompt. With an empty" in card
    write_report(record, tmp_path / "report")
    assert "with an empty system prompt" in (tmp_path / "report" / "report.html").read_text()
    said = (out / "completions.jsonl").read_text()
    assert "base, system prompt: empty" in said
