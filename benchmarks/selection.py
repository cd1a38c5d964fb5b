"""Our selection against the paper's plain loop: the same winner, forward tokens and seconds.

    python benchmarks/selection.py [--splits 6]

On models that are trained on the spot, on one thread; both start from the same candidates and
judge them under the same edit. With `--splits`, as many draws of the prompts are compared for two
methods each, and what comes out is summed up: one split says little about bounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from abl_hub.demo.corpus import prompts
from abl_hub.directions.contrast import make_contrast
from abl_hub.directions.evidence import Evidence
from abl_hub.directions.means import mean_activations
from abl_hub.directions.methods import METHODS
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import behaviour_tokens, select, validate
from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import Active, prepared
from abl_hub.model.chat import load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.trace import trace_writers
from benchmarks.counting import counted
from benchmarks.models import trained_models
from benchmarks.plain_selection import plain_selection


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One selection, both ways: where each found its winner, what it took.

    Args:
        winner: layer and position, ours.
        expected: the plain loop's.
        passed: whether a candidate met all thresholds.
        apart: how far the winners' bypass scores are apart.
        tokens: forward-token computations, plain and ours.
        seconds: plain and ours.
    """

    candidates: int
    winner: tuple[int, int]
    expected: tuple[int, int]
    passed: bool
    apart: float
    tokens: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def ratio(self) -> float:
        return self.tokens[0] / self.tokens[1]


def compare(folder: Path, method: str, seed: int) -> Compared:
    chat = load_chat_model(folder)
    asked = prompts()
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive],
        [prompt for prompt, _ in asked.negative],
        seed=seed,
    )
    means = mean_activations(chat, contrast)
    tokens = behaviour_tokens(means)
    evidence = Evidence(chat=chat, contrast=contrast, means=means, behaviour_tokens=tokens)
    proposals = METHODS[method](evidence)
    trace = trace_writers(chat.model)
    between = gains(chat.model, trace.writers)

    @cache
    def ready(proposal: Proposal) -> Active:
        return prepared(remove(proposal.basis, trace.writers), chat.model, between)

    def ablate(proposal: Proposal) -> AbstractContextManager[None]:
        return ready(proposal)()

    for proposal in proposals:
        ready(proposal)  # the edits' factors are the same for both, and not what is compared
    start = time.perf_counter()
    with counted(chat) as plain:
        validation = validate(chat, contrast, tokens)
        slow, judged = plain_selection(chat, proposals, validation, ablate)
    middle = time.perf_counter()
    with counted(chat) as ours:
        validation = validate(chat, contrast, tokens)
        fast = select(chat, proposals, validation, method=method, ablate=ablate)
    end = time.perf_counter()
    winner = fast.chosen
    if winner.bypass is None:
        raise AssertionError("the winner is judged on all prompts")
    return Compared(
        candidates=len(judged),
        winner=(winner.layer, winner.position),
        expected=(slow.proposal.layer, slow.proposal.position),
        passed=fast.passed,
        apart=abs(winner.bypass - slow.bypass),
        tokens=(plain.tokens, ours.tokens),
        seconds=(middle - start, end - middle),
    )


def show_each() -> None:
    print(
        "| model | candidates | winner | plain loop's winner | bypass differs by | "
        "tokens, plain loop | tokens, ours | ratio | seconds, plain loop | seconds, ours | ratio |"
        "\n|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, folder in trained_models().items():
        one = compare(folder, "projected", 0)
        print(
            f"| {name} | {one.candidates} | layer {one.winner[0]}, position {one.winner[1]} | "
            f"layer {one.expected[0]}, position {one.expected[1]} | {one.apart:.0e} | "
            f"{one.tokens[0]} | {one.tokens[1]} | {one.ratio:.1f} | {one.seconds[0]:.1f} | "
            f"{one.seconds[1]:.1f} | {one.seconds[0] / one.seconds[1]:.1f} |",
            flush=True,
        )


def show_splits(splits: int) -> None:
    print(
        "| model | method | same winner | a candidate met all thresholds | ratio of tokens, lowest "
        "| median | highest | 5 or more |\n|---|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, folder in trained_models().items():
        for method in ("projected", "difference"):
            all_ = [compare(folder, method, seed) for seed in range(splits)]
            ratios = [one.ratio for one in all_]
            print(
                f"| {name} | {method} | {sum(one.winner == one.expected for one in all_)} of "
                f"{splits} | {sum(one.passed for one in all_)} | {min(ratios):.1f} | "
                f"{statistics.median(ratios):.1f} | {max(ratios):.1f} | "
                f"{sum(ratio >= 5 for ratio in ratios)} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=0)
    splits = parser.parse_args().splits
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if splits:
        show_splits(splits)
    else:
        show_each()


if __name__ == "__main__":
    main()
