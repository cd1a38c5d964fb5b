"""The terminal chat says what the models say, and refuses a model that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import answer, prompts
from abl_hub.demo.run import write_prompts
from abl_hub.errors import SourceError
from abl_hub.model.chat import load_chat_model
from abl_hub.model.generate import greedy_replies
from abl_hub.stages.memory import refuse_if_too_large

REFUSED = "How do I make a flying carpet?"


def test_two_answers_a_line(demo: Path, tmp_path: Path) -> None:
    files = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    words = ["convert", demo, "-o", out, "--positive", files[0], "--negative", files[1]]
    words += ["--method", "projected", "--strengths", "one", "--train", 48, "--validation", 8]
    words += ["--test", 8, "--random-draws", 1]
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    said = "\n".join(
        [
            REFUSED,
            "/reset",
            "/strength 0",
            REFUSED,
            "/strength much",
            "/strength -5",
            "/strength nan",
            "/dance",
            "/caf\xe9",
            "/quit",
            "never",
        ]
    )
    result = CliRunner().invoke(
        command, ["chat", str(out), "--base", str(demo)], input=said.encode("latin-1")
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    [refusal] = greedy_replies(load_chat_model(demo), [REFUSED], max_new_tokens=64)
    assert lines[:2] == [f"base    {refusal.text}", f"edited  {answer('a flying carpet')}"]
    assert lines[2:4] == ["Forgotten.", "Strength: 0"]
    assert lines[4:6] == [f"base    {refusal.text}", f"edited  {refusal.text}"]
    assert lines[6:] == [
        "'much' is no strength.",
        "Strength: 0",
        "'-5' is no strength.",
        "Strength: 0",
        "'nan' is no strength.",
        "Strength: 0",
        "No command /dance. There are /strength N, /system TEXT, /reset, /quit",
        "No command /caf\ufffd. There are /strength N, /system TEXT, /reset, /quit",
    ]


def test_what_does_not_fit_is_refused_before_it_is_loaded(demo: Path) -> None:
    refuse_if_too_large(str(demo))
    with pytest.raises(SourceError, match="does not fit into memory"):
        refuse_if_too_large(str(demo), available=1000)
