"""One small conversion of the demo model, for tests of what happens to the result."""

from __future__ import annotations

from pathlib import Path

import pytest

import abl_hub
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.directions.contrast import SplitSizes


@pytest.fixture(scope="session")
def small_recipe(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> abl_hub.Recipe:
    """Few prompts and short replies: quick, and still an edit that does what it says."""
    positive, negative = write_prompts(prompts(), tmp_path_factory.mktemp("prompts"))
    return abl_hub.Recipe(
        source=str(demo),
        positive=str(positive),
        negative=str(negative),
        sizes=SplitSizes(train=32, validation=8, test=16),
        methods=("difference",),
        strengths="one",
        max_new_tokens=8,
        random_draws=1,
    )


@pytest.fixture(scope="session")
def small_output(small_recipe: abl_hub.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `convert`; tests that change it copy it."""
    out = tmp_path_factory.mktemp("small") / "out"
    abl_hub.convert(small_recipe, out)
    return out
