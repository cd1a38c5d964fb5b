"""`extract` over several processes: the first does everything, the others read their share.

The others wait until the first has downloaded, loaded and found how replies open; then each loads
the model, reads its part of the prompts, and is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from abl_hub.directions.means import mean_activations
from abl_hub.model.chat import load_chat_model
from abl_hub.model.crew import Crew, crew
from abl_hub.model.opening import opened
from abl_hub.report.recipe import Recipe
from abl_hub.stages.inputs import fetch_prompts, fetch_source
from abl_hub.stages.runtime import Runtime, dtype_named

_GO = "go:"


def launched() -> int:
    """How many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def gathered(recipe: Recipe, runtime: Runtime) -> Iterator[Runtime | None]:
    """The runtime for all that follows, on the first process; None on the others, when they are
    done and nothing is left for them to do.
    """
    with crew(launched()) as together:
        if together.rank > 0:
            _assist(recipe, runtime, together)
            yield None
            return
        called: list[bool] = []
        try:
            yield replace(runtime, crew=together, called=lambda: called.append(True))
        finally:
            if not called:
                # What was resumed has its means already, or has failed before: nobody waits.
                together.told(None)


def call(runtime: Runtime, opening: str) -> None:
    """Let the others begin; `opening` is what all replies begin with."""
    runtime.called()
    runtime.crew.told(_GO + opening)


def _assist(recipe: Recipe, runtime: Runtime, together: Crew) -> None:
    word = together.told(None)
    if word is None:
        return
    source = fetch_source(recipe, runtime)
    chat = load_chat_model(
        source.folder,
        dtype=dtype_named(recipe.dtype),
        device=runtime.device,
        load_in=recipe.load_in,
        system=recipe.system,
        trust_remote_code=runtime.trust_remote_code,
    )
    mean_activations(
        opened(chat, word.removeprefix(_GO)),
        fetch_prompts(recipe, runtime).contrast,
        rows=runtime.rows,
        crew=together,
    )
