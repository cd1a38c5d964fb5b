"""A contrast: two prompt sets, split into train, validation and test without overlap.

Knows prompts as text; not where they came from nor what they will show. The direction is the
contrast's, not "refusal": refusal is only the default pair.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from abl_hub.errors import ContrastError
from abl_hub.sameness import plain

PARTS = ("train", "validation", "test")

_FEWEST_TRAIN = 8
_FEWEST_HELD_OUT = 4


@dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """Prompts a side (Arditi et al. 2024, section 2.2: 128, 32 and 100)."""

    train: int = 128
    validation: int = 32
    test: int = 100

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


@dataclass(frozen=True, kw_only=True)
class Split:
    """One side of a contrast."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def digests(self) -> dict[str, str]:
        """SHA-256 of each part, so that a stranger can check that the prompts are the same."""
        return {name: digest(getattr(self, name)) for name in PARTS}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Prompts that show a behaviour and prompts that do not.

    Args:
        positive: prompts that show it (refused).
        negative: prompts that do not (answered).
        behaviour: its name, carried to the card.
    """

    positive: Split = field(repr=False)
    negative: Split = field(repr=False)
    behaviour: str = "refusal"


def digest(prompts: Sequence[str]) -> str:
    """SHA-256 over the prompts in their order."""
    return hashlib.sha256(json.dumps(list(prompts), ensure_ascii=False).encode()).hexdigest()


def make_contrast(
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    sizes: SplitSizes | None = None,
    seed: int = 0,
    behaviour: str = "refusal",
    parts: Mapping[str, str] | None = None,
) -> Contrast:
    """Draw disjoint splits from two prompt sets.

    Args:
        parts: prompt → "train", "validation" or "test", of all prompts of a set that brings its own
            splits: they are drawn for that part alone.
        sizes: None takes the paper's sizes where there are enough prompts, and otherwise the same
            proportions of what there is.

    Raises:
        ContrastError: a side is empty or too small, holds a prompt twice, or shares one with the
            other side.
    """
    for name, prompts in (("positive", positive), ("negative", negative)):
        if not prompts:
            raise ContrastError(f"The {name} prompt set is empty", next_step=f"Give --{name}")
        repeated = len(prompts) - len({plain(prompt) for prompt in prompts})
        if repeated:
            raise ContrastError(
                f"The {name} prompt set holds {repeated} prompts twice",
                why="a prompt in two splits would be judged on what the direction was made from",
                next_step="Remove the duplicates",
            )
    shared = {plain(prompt) for prompt in positive} & {plain(prompt) for prompt in negative}
    if shared:
        raise ContrastError(
            f"The two prompt sets share {len(shared)} prompts",
            why="a prompt cannot both show the behaviour and not show it",
            next_step="Remove them from one side",
        )
    sides = [_pools(side, parts or {}) for side in (positive, negative)]
    sizes = sizes or _sizes(sides)
    return Contrast(
        positive=_split("positive", sides[0], sizes, seed),
        negative=_split("negative", sides[1], sizes, seed),
        behaviour=behaviour,
    )


def _pools(prompts: Sequence[str], parts: Mapping[str, str]) -> Mapping[str, list[str]]:
    """What each part is drawn from; "" is what all of them are drawn from."""
    if not any(prompt in parts for prompt in prompts):
        return {"": list(prompts)}
    return {name: [prompt for prompt in prompts if parts.get(prompt) == name] for name in PARTS}


def _sizes(sides: Sequence[Mapping[str, list[str]]]) -> SplitSizes:
    """The paper's, or what there is of it."""
    whole = [len(side[""]) for side in sides if "" in side]
    sizes = _proportional(min(whole)) if whole else SplitSizes()
    own = [side for side in sides if "" not in side]
    return SplitSizes(
        **{name: min(getattr(sizes, name), *(len(side[name]) for side in own)) for name in PARTS}
        if own
        else asdict(sizes)
    )


def _proportional(available: int) -> SplitSizes:
    paper = SplitSizes()
    if available >= paper.total:
        return paper
    train = max(_FEWEST_TRAIN, available * paper.train // paper.total)
    validation = max(_FEWEST_HELD_OUT, available * paper.validation // paper.total)
    test = max(_FEWEST_HELD_OUT, available - train - validation)
    return SplitSizes(train=train, validation=validation, test=test)


def _split(name: str, pools: Mapping[str, list[str]], sizes: SplitSizes, seed: int) -> Split:
    if "" not in pools:
        return _own_split(name, pools, sizes, seed)
    prompts = pools[""]
    if len(prompts) < sizes.total:
        raise ContrastError(
            f"The {name} prompt set has {len(prompts)} different prompts, {sizes.total} are needed",
            why=f"{sizes.train} to train, {sizes.validation} to validate, {sizes.test} to test",
            next_step="Give more prompts, or smaller --train, --validation and --test",
        )
    drawn = random.Random(f"{seed}/{name}").sample(prompts, sizes.total)
    middle = sizes.train + sizes.validation
    return Split(
        train=tuple(drawn[: sizes.train]),
        validation=tuple(drawn[sizes.train : middle]),
        test=tuple(drawn[middle:]),
    )


def _own_split(name: str, pools: Mapping[str, list[str]], sizes: SplitSizes, seed: int) -> Split:
    drawn = {}
    for part, prompts in pools.items():
        wanted = getattr(sizes, part)
        if len(prompts) < max(wanted, 1):
            raise ContrastError(
                f"The {name} prompt set has {len(prompts)} {part} prompts, {max(wanted, 1)} are "
                "needed",
                next_step="Give more prompts, or smaller --train, --validation and --test",
            )
        drawn[part] = tuple(random.Random(f"{seed}/{name}/{part}").sample(prompts, wanted))
    return Split(**drawn)
