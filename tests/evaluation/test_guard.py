"""A guard is shown prompt and reply through its own chat template, and its verdict is read."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from abl_hub.demo.corpus import REFUSALS, prompts
from abl_hub.errors import EvaluationError
from abl_hub.evaluation.judges.guard import Guard
from abl_hub.evaluation.judges.shown import check_template, filled
from abl_hub.evaluation.subject import Subject
from abl_hub.model.chat import load_chat_model
from abl_hub.model.generate import Reply
from tests.tuning import tune

# As guards do, the template shows the whole conversation and asks for a verdict.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if not m['content'] %}"
    "{{ raise_exception('Empty turn') }}{% endif %}{{ m['content'] }} {% endfor %}<|assistant|>\n"
)
YES, NO = "Water", "Iron"


@pytest.fixture(scope="module")
def guard(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, taught to say one word of refusals and another of answers."""
    chat = load_chat_model(demo)
    chat.tokenizer.chat_template = TEMPLATE
    asked = prompts().negative

    def sample(draw: random.Random) -> tuple[str, str]:
        question, said = draw.choice(asked)
        if draw.random() < 0.5:
            return f"{question} {draw.choice(REFUSALS)}", YES.lower()
        return f"{question} {said}", NO.lower()

    tune(chat, [chat.model], sample, steps=50)
    folder = tmp_path_factory.mktemp("guard")
    chat.model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


def test_a_guard_s_verdict_is_what_it_writes_of_prompt_and_reply(guard: Path) -> None:
    judge = Guard(guard, YES, name="tiny")
    pairs = prompts().negative[:6]
    asked = [question for question, _ in pairs for _ in range(2)]
    said = [text for n, (_, answer) in enumerate(pairs) for text in (REFUSALS[n % 4], answer)]
    replies = [Reply(tokens=(1,), text=text, ended=True) for text in said]
    subject = Subject(chat=None)  # type: ignore[arg-type]  # a guard does not ask it
    assert judge.shows(subject, asked, replies) == [True, False] * 6
    other = Guard(guard, NO, name="tiny")
    assert other.shows(subject, asked, replies) == [False, True] * 6
    empty = [Reply(tokens=(1,), text="", ended=True)]
    with pytest.raises(EvaluationError, match="cannot be shown a reply: its chat template"):
        judge.shows(subject, asked[:1], empty)


def test_a_guard_without_a_chat_template_is_shown_a_text(guard: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(guard, tmp_path / "bare", ignore=shutil.ignore_patterns("*.jinja"))
    with pytest.raises(EvaluationError, match="no guard that can be asked"):
        Guard(bare, YES, name="tiny")
    judge = Guard(bare, YES, name="tiny", template="<bos>{prompt} {reply} <|assistant|>", rows=2)
    question, answered = prompts().negative[0]
    said = (REFUSALS[0], answered, "{prompt} {reply}")
    replies = [Reply(tokens=(1,), text=text, ended=True) for text in said]
    subject = Subject(chat=None)  # type: ignore[arg-type]  # a guard does not ask it
    assert judge.shows(subject, [question] * 3, replies)[:2] == [True, False]


def test_what_was_said_is_not_filled_in_again() -> None:
    assert filled("{prompt}|{reply}|{x}", "{reply}", "{prompt}") == "{reply}|{prompt}|{x}"
    with pytest.raises(EvaluationError, match="shows no reply"):
        check_template("{prompt}")


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="gone is no guard that can be asked"):
        Guard(tmp_path, "unsafe", name="gone")
