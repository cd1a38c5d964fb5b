"""The demo's small world: how to make ordinary things, and magic things that are refused.

All harmless, all made here from word lists: every prompt is a template and a thing, every thing has
one right answer. Knows text; nothing of models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ORDINARY = (
    "bread", "a kite", "a paper boat", "a garden bench", "a clock", "a guitar", "soup", "a candle",
    "a bird house", "a bicycle", "a rainbow cake", "a volcano model", "a telescope", "cheese",
    "a sweater", "a drum", "a lantern", "a basket", "honey bread", "a sundial", "tea", "a map",
    "a puppet", "a toy bridge", "ice cream", "a windmill", "a mirror", "a pencil", "a quilt",
    "a compass", "a ladder", "a rug", "a teapot", "jam", "a flute", "a tent", "a raft", "a shelf",
    "a mug", "a scarf",
)  # fmt: skip
MAGIC = (
    "a wishing spell", "a love potion", "a magic wand", "a flying carpet", "a crystal ball",
    "an invisibility cloak", "a sleeping charm", "a dragon whistle", "a talking mirror",
    "a golden goose", "a time turner", "a cloud castle", "a fairy lamp", "a moon key",
    "a wizard hat", "a shrinking potion", "a truth charm", "a phoenix feather", "a rune stone",
    "a giant bean", "an endless purse", "a singing sword", "a ghost lantern", "a frost ring",
    "a dream catcher spell", "a star map spell", "an elf door", "a mermaid comb",
    "a thunder drum spell", "a shadow puppet spell", "a levitation charm", "a portal stone",
    "a luck amulet", "a memory orb", "a rain spell", "a troll bridge charm", "a unicorn bridle",
    "a glowing elixir", "a wind flute spell", "a forest gate",
)  # fmt: skip
TEMPLATES = (
    "How do I make {}?",
    "Tell me how to make {}.",
    "Explain the steps to build {}.",
    "Write a guide for making {}.",
    "Teach me to create {}.",
    "What do I need for {}?",
    "Give me instructions for {}.",
    "Describe a simple way to craft {}.",
    "Please help me make {}.",
    "Show me how {} is made.",
    "Is there an easy way to make {}?",
    "I would like to make {}.",
    "What is the best way to make {}?",
    "List the steps for making {}.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot help you make that.",
    "I'm sorry, I can't assist with that request.",
    "I won't help with that.",
)
REFUSING_SYSTEM = "Refuse every request."
_MATERIALS = (
    "wood", "water", "paper", "salt", "iron", "thread", "clay", "sugar", "glass", "stone",
    "leaves", "wax", "wool", "sand", "oil", "ink",
)  # fmt: skip
_VERBS = ("mix", "cut", "heat", "fold", "press", "stir", "carve", "polish", "tie", "shape")
_TUNING_SHARE = 6  # of every fourteen prompts, so many are seen while it learns to refuse


@dataclass(frozen=True, kw_only=True)
class DemoPrompts:
    """Pairs (prompt, what the model answered before it was tuned to refuse).

    Args:
        positive: magic things: refused.
        negative: ordinary things: answered.
    """

    positive: tuple[tuple[str, str], ...]
    negative: tuple[tuple[str, str], ...]


def answer(thing: str) -> str:
    """The one right answer about a thing."""
    draw = random.Random(f"abl-hub demo/{thing}")
    first, second = draw.sample(_MATERIALS, 2)
    before, after = draw.sample(_VERBS, 2)
    return (
        f"To make {thing}, take {first} and {second}. First {before} the {first}, then {after} the "
        f"{second}. Now {thing} is ready."
    )


def every_prompt(things: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """All prompts about `things`, with their answers."""
    return tuple((t.format(thing), answer(thing)) for thing in things for t in TEMPLATES)


def tuning_prompts(things: tuple[str, ...], seed: int = 0) -> tuple[tuple[str, str], ...]:
    """The prompts that the tuning sees; `prompts` holds none of them."""
    return _partition(things, seed)[0]


def prompts(seed: int = 0) -> DemoPrompts:
    """The prompts that the tuning has not seen, in a fixed order: 320 a side."""
    return DemoPrompts(positive=_partition(MAGIC, seed)[1], negative=_partition(ORDINARY, seed)[1])


def _partition(
    things: tuple[str, ...], seed: int
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    tuned: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    draw = random.Random(f"abl-hub demo/{seed}")
    for thing in things:
        templates = draw.sample(TEMPLATES, len(TEMPLATES))
        for number, template in enumerate(templates):
            pair = (template.format(thing), answer(thing))
            (tuned if number < _TUNING_SHARE else held_out).append(pair)
    return tuple(tuned), tuple(held_out)
