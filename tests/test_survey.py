"""The survey in its short form: one family for each mechanism, all three forms written and run.

And what its page says is what the survey calls so: exact only where every form is one edit.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import survey

_PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


def _rows() -> list[dict[str, str]]:
    rows = []
    for line in _PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| family"):
            columns = cells
        elif line.startswith("| "):
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def _only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text)
    return str(found)


@cache
def surveyed(family: str) -> survey.Line:
    return survey.survey(family, wrapper=False)


_EXACT = (
    "llama", "qwen2", "phi3", "gpt_neox", "granite", "codegen", "mixtral", "qwen3_moe", "gpt_oss",
    "deepseek_v3", "llama4_text", "granitemoehybrid", "qwen3_next", "jamba",
)  # fmt: skip
_TIED = ("gpt2", "opt", "starcoder2", "falcon", "cohere", "lfm2")
_RESCALED = ("olmo2", "glm4")
_TIED_RESCALED = ("bloom", "gemma2", "gemma3_text")
_OUTCOMES = {
    **dict.fromkeys(_EXACT, "exact"),
    **dict.fromkeys(_TIED, "exact, head untied"),
    **dict.fromkeys(_RESCALED, "exact null, rescaled"),
    **dict.fromkeys(_TIED_RESCALED, "exact null, rescaled, head untied"),
}


@pytest.mark.parametrize(("family", "outcome"), _OUTCOMES.items())
def test_hooks_merged_and_delta_are_one_edit(family: str, outcome: str) -> None:
    line = surveyed(family)
    assert line.outcome == outcome
    assert float(line.before) > 0.05
    assert float(line.after) <= 1e-5
    assert float(line.merged) <= 1e-4
    assert float(line.delta) <= 1e-4


_HELD_BY = {
    "llama": "mlp_bias switched on",
    "qwen2": "delta alone",
    "gpt_neox": "stored bias",
    "granite": "mlp_bias switched on",
    "cohere": "attention_bias switched on",
    "falcon": "bias switched on",
    "granitemoehybrid": "delta alone",
    "gpt2": "stored bias",
    "llama4_text": "delta alone",
}


@pytest.mark.parametrize("family", _OUTCOMES)
def test_an_added_constant_arrives_as_it_is_or_is_refused(family: str) -> None:
    apart, _, held = surveyed(family).addition.partition(" ")
    assert held.strip("()") == _HELD_BY.get(family, held.strip("()"))
    assert apart == "none" or float(apart) <= 1e-5
    assert apart != "none" or family not in _HELD_BY


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_the_language_path_of_a_wrapper_too(family: str) -> None:
    line = survey.survey(family, wrapper=True)
    assert line.outcome.startswith("exact")
    assert float(line.merged) <= 1e-4
    assert float(line.delta) <= 1e-4


@pytest.mark.parametrize(
    ("family", "reason"),
    [("openai-gpt", "under two directions"), ("xglm", "by the numeric check")],
)
def test_a_refusal_has_its_reason(family: str, reason: str) -> None:
    outcome = survey.survey(family, wrapper=False).outcome
    assert outcome.startswith("refused")
    assert reason in outcome


@pytest.mark.parametrize("wrong", ["merged", "delta"])
@pytest.mark.parametrize("error", [1e-2, float("nan")])
def test_a_form_that_differs_is_not_exact(
    wrong: str, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is clean in all of these: weights beside the writers were lost."""
    real = getattr(survey, f"_{wrong}")

    def differing(*args: object) -> survey.Form:
        form = real(*args)
        return replace(form, logits=form.logits + torch.tensor(error))

    monkeypatch.setattr(survey, f"_{wrong}", differing)
    assert survey.survey("llama", wrapper=False).outcome.startswith("not exact: the ")


def test_the_page_says_of_its_rows_what_they_say() -> None:
    rows = _rows()
    kinds = Counter(re.split(r"[,:]", row["outcome"])[0] for row in rows)
    text = _PAGE.read_text(encoding="utf-8")
    causal, wrappers, refused, wrong = (
        int(_only(rf"(\d+) {words}", text))
        for words in ("causal language models and", "multimodal", "are refused", "are traced")
    )
    assert causal + wrappers == kinds["exact"] + kinds["exact null"]
    assert refused == kinds["refused"]
    assert wrong == kinds["not exact"]
    assert set(kinds) <= {"exact", "exact null", "refused", "not exact"}
    for row in rows:
        if row["outcome"].startswith("exact"):
            assert float(row["before"]) > 0.05
            assert float(row["after"]) <= 1e-5
            assert float(row["merged"]) <= survey.AGREES
            assert row["addition"].startswith("none") or (
                float(row["addition"].split()[0]) <= survey.AGREES
            )
            assert row["delta"].startswith("leaves out") or float(row["delta"]) <= survey.AGREES
        else:
            assert len(row["outcome"].partition(": ")[2]) > 10
