"""One direction, several, or a failed run: the rule on shares of replies."""

from __future__ import annotations

import pytest

from abl_hub.evaluation.spread import Finding, How, Reading, Removal, tell

READ = Reading(auc=1.0, halves=1.0)


def without(
    how: How, directions: int, shown: float, *, non_answers: float = 0.0, damage: float = 0.0
) -> Removal:
    return Removal(
        how=how,
        directions=directions,
        layer=4,
        shown=shown,
        non_answers=non_answers,
        damage=damage,
    )


BASE = without("none", 0, 1.0)
MISSED = without("edit", 1, 1.0)
SINGLE = without("single", 1, 0.9)


@pytest.mark.parametrize(
    ("removals", "finding", "directions"),
    [
        ([BASE, without("edit", 1, 0.0)], "one", 1),
        ([BASE, MISSED, without("single", 1, 0.1)], "failed", 1),
        ([BASE, MISSED, SINGLE, without("successive", 2, 0.0)], "several", 2),
        ([BASE, without("edit", 3, 0.0), SINGLE], "several", 3),
        ([BASE, without("edit", 3, 0.0), without("single", 1, 0.0)], "one", 1),
        ([BASE, without("edit", 1, 0.5), without("successive", 2, 0.0)], "several", 2),
        ([BASE, MISSED, SINGLE, without("singular", 5, 0.9)], "unknown", None),
        # The prompts are mixed up: both sides show it as often.
        ([without("none", 0, 0.5, damage=0.5), without("edit", 1, 0.0)], "failed", None),
    ],
)
def test_what_replies_say(
    removals: list[Removal], finding: Finding, directions: int | None
) -> None:
    told = tell(removals, READ)
    assert (told.finding, told.directions) == (finding, directions)


@pytest.mark.parametrize("broken", [{"non_answers": 0.9}, {"damage": 0.4}])
def test_a_broken_model_does_not_pass_for_one_that_answers(broken: dict[str, float]) -> None:
    silent = without("successive", 2, 0.0, **broken)
    assert tell([BASE, MISSED, SINGLE, silent], READ).finding == "unknown"
    assert tell([BASE, without("edit", 1, 0.0, **broken)], READ).finding == "unknown"


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        (Reading(auc=1.0, halves=None), "too few to tell"),
        (Reading(auc=1.0, halves=0.3), "two halves"),
        (Reading(auc=0.6, halves=0.95), "AUC of 0.60"),
    ],
)
def test_prompts_that_show_too_little_do_not_make_a_model_hardened(
    reading: Reading, why: str
) -> None:
    told = tell([BASE, MISSED, SINGLE, without("successive", 2, 0.0)], reading)
    assert told.finding == "failed"
    assert why in told.reason
    # What is enough is enough, however it was found.
    assert tell([BASE, without("edit", 1, 0.0)], reading).finding == "one"
