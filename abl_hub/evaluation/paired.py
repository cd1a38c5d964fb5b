"""Paired tests: the same prompts under two models, so that what differs is the model alone.

Knows outcomes; not what was done to the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Exact McNemar test of two yes-or-no outcomes on the same prompts (McNemar 1947).

    Args:
        only_before: prompts that show it before and not after.
        only_after: prompts that show it after and not before.
        p: two-sided exact binomial probability, if neither were likelier.
    """

    only_before: int
    only_after: int
    p: float


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Compare two outcomes, prompt by prompt.

    Raises:
        ValueError: they are not of the same prompts.
    """
    pairs = list(zip(before, after, strict=True))
    lost = sum(one and not other for one, other in pairs)
    gained = sum(other and not one for one, other in pairs)
    changed = lost + gained
    tail = sum(math.comb(changed, k) for k in range(min(lost, gained) + 1))
    p = min(1.0, 2 * tail / 2**changed) if changed else 1.0
    return Paired(only_before=lost, only_after=gained, p=p)


def weakest(paired: Mapping[str, Paired]) -> list[tuple[str, int, Paired]]:
    """Of the tests of several random draws ("random → edited", "random 1 → edited" …) the one with
    the largest p: (pair, how many draws, test). Others stand for themselves.
    """
    kinds: dict[str, list[tuple[str, Paired]]] = {}
    for pair, test in paired.items():
        kinds.setdefault(re.sub(r" \d+ →", " →", pair), []).append((pair, test))
    found = []
    for tests in kinds.values():
        pair, test = max(tests, key=lambda one: one[1].p)
        found.append((pair, len(tests), test))
    return found


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float | None:
    """Agreement beyond chance (Cohen 1960), −1 to 1; None where chance alone would agree always."""
    pairs = list(zip(one, other, strict=True))
    seen = sum(a == b for a, b in pairs) / len(pairs)
    shares = [sum(words) / len(pairs) for words in (one, other)]
    chance = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
    return None if chance == 1.0 else (seen - chance) / (1 - chance)
