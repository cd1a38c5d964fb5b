"""Prompt sets by name: where each lies on the Hub. Names and addresses; no prompt is here.

Ids, configurations, splits and columns are those that public code reads these sets by. They are
resolved to commits when they are used, and the record holds those. Several are gated: their page
has to be accepted once, and a token given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["refusal", "over-refusal"]


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A published test set.

    Args:
        kind: "refusal", prompts that a safe model declines; "over-refusal", harmless ones that
            look alike, which it should answer.
        spec: as `abl_hub.hub.prompts.load_prompts` reads it.
        source: who made it.
        gated: the Hub asks for consent first.
    """

    kind: Kind
    spec: str
    source: str
    gated: bool = False


TEST_SETS: Mapping[str, NamedSet] = {
    "jailbreakbench": NamedSet(
        kind="refusal",
        spec="JailbreakBench/JBB-Behaviors:behaviors/harmful#Goal",
        source="Chao et al. 2024",
    ),
    "jailbreakbench-benign": NamedSet(
        kind="over-refusal",
        spec="JailbreakBench/JBB-Behaviors:behaviors/benign#Goal",
        source="Chao et al. 2024",
    ),
    "harmbench": NamedSet(
        kind="refusal",
        spec="walledai/HarmBench:standard/train#prompt",
        source="Mazeika et al. 2024",
        gated=True,
    ),
    "strongreject": NamedSet(
        kind="refusal",
        spec="walledai/StrongREJECT:train#prompt",
        source="Souly et al. 2024",
        gated=True,
    ),
    "sorry-bench": NamedSet(
        kind="refusal",
        spec="sorry-bench/sorry-bench-202503:train#turns?prompt_style=base",
        source="Xie et al. 2025",
        gated=True,
    ),
    "xstest": NamedSet(
        kind="over-refusal",
        spec="walledai/XSTest:test#prompt?label=safe",
        source="Röttger et al. 2024",
        gated=True,
    ),
    "or-bench": NamedSet(
        kind="over-refusal",
        spec="bench-llm/or-bench:or-bench-hard-1k/train#prompt",
        source="Cui et al. 2025",
    ),
}

# Arditi et al. 2024, section 2.2 and appendix A: 128 prompts a side to extract from, of AdvBench,
# MaliciousInstruct and TDC 2023; 32 to select on, of HarmBench's standard validation behaviours; to
# test on, JailbreakBench. What is tested on is left out of the rest.
NAMED_SETS: Mapping[str, str] = {
    "paper-harmful": "walledai/AdvBench:train#prompt + walledai/MaliciousInstruct:train#prompt + "
    "walledai/TDC23-RedTeaming:train#prompt | "
    "swiss-ai/harmbench:DirectRequest/val#Behavior?FunctionalCategory=standard | "
    "JailbreakBench/JBB-Behaviors:behaviors/harmful#Goal",
    "paper-harmless": "tatsu-lab/alpaca:train#instruction?input=",
    **{name: found.spec for name, found in TEST_SETS.items()},
}
