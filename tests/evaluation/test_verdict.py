"""The verdict's rule, condition by condition."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abl_hub.evaluation.verdict import Arms, judge

CLEAN = Arms(
    base=1.0,
    edited=0.0,
    random=1.0,
    base_negative=0.0,
    induced=0.9,
    induced_random=0.0,
    new_non_answers=0.0,
)


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({}, "SUPPORTED"),
        ({"base": 0.4, "edited": 0.0}, "NO-BASELINE-REFUSAL"),
        ({"edited": 0.51}, "NOT-SUPPRESSED"),
        ({"random": 0.2}, "NOT-SEPARATED-FROM-RANDOM"),
        ({"new_non_answers": 0.2}, "NON-ANSWERS"),
        ({"induced": 0.4}, "SUPPRESSION-ONLY"),
        ({"induced_random": 0.8}, "SUPPRESSION-ONLY"),
        ({"induced": None}, "SUPPRESSION-ONLY"),
    ],
)
def test_rule(change: dict[str, float | None], label: str) -> None:
    assert judge(replace(CLEAN, **change)).label == label  # type: ignore[arg-type]


def test_the_pre_registered_case_is_supported() -> None:
    """Qwen2.5-1.5B-Instruct in the small reproduction that fixed the margins."""
    measured = Arms(
        base=1.0,
        edited=0.0,
        random=1.0,
        base_negative=0.16,
        induced=0.84,
        induced_random=0.09,
        new_non_answers=0.0,
    )
    assert judge(measured).label == "SUPPORTED"
