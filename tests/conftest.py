"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read by huggingface_hub when it is first imported: the local Hub speaks LFS only, and no test may
# use the caches or the token of whoever runs it.
_HOME = tempfile.TemporaryDirectory(prefix="abl-hub-tests-")
os.environ.pop("HF_TOKEN", None)
os.environ.update(HF_HOME=_HOME.name, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")

# The demo model is trained once, and kept in the checkout.
_ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("ABL_HUB_CACHE", str(_ROOT / ".cache"))

import abl_hub  # noqa: E402
from abl_hub.demo.corpus import prompts  # noqa: E402
from abl_hub.demo.run import write_prompts  # noqa: E402
from abl_hub.directions.contrast import SplitSizes  # noqa: E402
from abl_hub.hub.local import LocalHub  # noqa: E402


@pytest.fixture(scope="session")
def local_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub on loopback for the whole session; choose repository names that no other test has."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="session")
def demo() -> Path:
    """The trained demo model: it answers everything but one harmless topic."""
    from abl_hub.demo.train import demo_model

    return demo_model()


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
