"""Two Spaces, running: a random tiny model's and the demo model's; a browser to look at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import abl_hub
from abl_hub.report.record import load_record
from abl_hub.stages.space import write_space
from tests.spaces.serving import chromium, serving
from tests.spaces.tiny import Running, tiny_space


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The Space of a random tiny model."""
    with tiny_space(tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture(scope="session")
def demo_output(small_recipe: abl_hub.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `convert`, with a direction whose removal makes the demo model answer."""
    out = tmp_path_factory.mktemp("demo-output") / "out"
    abl_hub.convert(replace(small_recipe, methods=("projected",)), out)
    return out


@pytest.fixture(scope="session")
def demo_space(demo: Path, demo_output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the Space, as `abl-hub space` writes it."""
    folder = tmp_path_factory.mktemp("demo-space") / "space"
    return write_space(demo_output, folder, load_record(demo_output), {}, base=str(demo))


@pytest.fixture(scope="session")
def demo_url(demo_space: Path) -> Iterator[str]:
    with serving(demo_space) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running
