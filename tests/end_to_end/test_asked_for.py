"""What `extract` does with options that ask for nothing, or for what cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import abl_hub
from abl_hub.errors import EditError
from abl_hub.stages.extract import extract


def test_a_strength_of_nothing_removes_nothing(
    small_recipe: abl_hub.Recipe, tmp_path: Path
) -> None:
    """All candidates are level, and one of them is still chosen."""
    recipe = replace(small_recipe, strength=0.0, methods=("projected",), strengths="auto")
    record = extract(recipe, tmp_path, abl_hub.Runtime())
    assert record.selection.chosen.kl == pytest.approx(0.0, abs=1e-6)
    assert record.strengths.points == ()
    assert "nothing is removed" in record.strengths.reason


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"methods": ("projected", "svd"), "rank": 1}, "--method svd does not go with --rank 1"),
        ({"methods": ("cone",), "rank": 1}, "--method cone does not go with --rank 1"),
        ({"induce": True, "strength": 0.0}, "--induce does not go with --strength 0"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    small_recipe: abl_hub.Recipe, tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    # A folder without a model: nothing is read before it is said.
    recipe = replace(small_recipe, source=str(tmp_path), **changes)
    with pytest.raises(EditError, match=word):
        extract(recipe, tmp_path, abl_hub.Runtime())
