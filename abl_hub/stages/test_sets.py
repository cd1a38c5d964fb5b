"""The test sets that a recipe asks for: loaded, kept apart from what the direction saw, asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from abl_hub.errors import ContrastError, SourceError
from abl_hub.evaluation.arms import Protocol, SetRates
from abl_hub.evaluation.bench import Keep, Questions
from abl_hub.evaluation.evaluate import evaluate_sets
from abl_hub.evaluation.subject import Subject
from abl_hub.hub.named_sets import TEST_SETS, Kind, NamedSet
from abl_hub.hub.prompts import PromptSet, load_prompts
from abl_hub.progress import Progress
from abl_hub.sameness import plain
from abl_hub.stages.inputs import Prompts
from abl_hub.stages.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class LoadedSet:
    """A test set that is ready to be asked.

    Args:
        prompts: what is asked, drawn from `found`.
        shared: how many prompts of the contrast's training and validation parts were left out.
    """

    name: str
    kind: Kind
    found: PromptSet
    prompts: tuple[str, ...]
    shared: int


def named(asked: str) -> NamedSet:
    """A test set by its name, or as `KIND:SPEC`.

    Raises:
        SourceError: neither.
    """
    if asked in TEST_SETS:
        return TEST_SETS[asked]
    kind, _, spec = asked.partition(":")
    for known in get_args(Kind):
        if kind == known and spec:
            return NamedSet(kind=known, spec=spec, source="")
    raise SourceError(
        f"No test set {asked!r}",
        next_step=f"Choose of {', '.join(TEST_SETS)}, or give refusal:PROMPTS or "
        "over-refusal:PROMPTS",
    )


def load_sets(
    asked: Sequence[str], prompts: Prompts, runtime: Runtime, *, limit: int, seed: int
) -> tuple[LoadedSet, ...]:
    """Load what is asked for, without prompts that the direction was found or chosen on.

    Raises:
        SourceError, ContrastError, HubError: a set cannot be had.
    """
    sides = (prompts.contrast.positive, prompts.contrast.negative)
    seen = {plain(one) for side in sides for one in (*side.train, *side.validation)}
    loaded = []
    for name in dict.fromkeys(asked):
        chosen = named(name)
        found = load_prompts(
            chosen.spec, token=runtime.token, endpoint=runtime.endpoint, cache_dir=runtime.cache_dir
        )
        unseen = [prompt for prompt in found.prompts if plain(prompt) not in seen]
        if not unseen:
            raise ContrastError(
                f"Nothing of the test set {name} is left",
                why="the direction was found or chosen on all of its prompts",
            )
        drawn = unseen
        if len(unseen) > limit:
            kept = set(random.Random(seed).sample(range(len(unseen)), limit))
            drawn = [prompt for row, prompt in enumerate(unseen) if row in kept]
        loaded.append(
            LoadedSet(
                name=name if name in TEST_SETS else found.name,
                kind=chosen.kind,
                found=found,
                prompts=tuple(drawn),
                shared=len(found.prompts) - len(unseen),
            )
        )
    return tuple(loaded)


def measure_sets(
    sets: Sequence[LoadedSet],
    questions: Questions,
    *,
    base: Subject,
    edited: Subject,
    protocol: Protocol,
    keep: Keep | None,
    progress: Progress,
) -> tuple[SetRates, ...]:
    """Rates of base and edited on each set, and by category where it has some."""
    categories = {p: category for one in sets for p, category in one.found.category_of.items()}
    names = [f"{number} {one.name}" for number, one in enumerate(sets)]
    rates = evaluate_sets(
        replace(
            questions,
            categories=categories,
            sets={name: one.prompts for name, one in zip(names, sets, strict=True)},
        ),
        base=base,
        edited=edited,
        protocol=protocol,
        keep=keep,
        progress=progress,
    )
    return tuple(
        SetRates(
            name=one.name,
            kind=one.kind,
            spec=one.found.spec,
            digest=one.found.digest,
            count=len(one.prompts),
            shared=one.shared,
            base=rates[name][0],
            edited=rates[name][1],
            paired=rates[name][2],
        )
        for name, one in zip(names, sets, strict=True)
    )
