"""The survey in its short form: one family for each mechanism, all three forms written and run."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.survey import Line, survey


@cache
def surveyed(family: str) -> Line:
    return survey(family, wrapper=False)


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
    line = survey(family, wrapper=True)
    assert line.outcome.startswith("exact")
    assert float(line.merged) <= 1e-4
    assert float(line.delta) <= 1e-4


@pytest.mark.parametrize(
    ("family", "reason"),
    [("openai-gpt", "under two directions"), ("xglm", "by the numeric check")],
)
def test_a_refusal_has_its_reason(family: str, reason: str) -> None:
    outcome = survey(family, wrapper=False).outcome
    assert outcome.startswith("refused")
    assert reason in outcome
