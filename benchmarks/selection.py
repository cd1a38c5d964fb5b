"""Our selection against the paper's plain loop: the same winner, forward tokens and seconds.

    python benchmarks/selection.py

On models that are trained on the spot, on one thread; both start from the same candidates and
judge them under the same edit.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
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


def compare(name: str, folder: Path, method: str = "projected") -> None:
    chat = load_chat_model(folder)
    asked = prompts()
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive], [prompt for prompt, _ in asked.negative]
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
    same = (winner.layer, winner.position) == (slow.proposal.layer, slow.proposal.position)
    print(
        f"| {name} | {len(judged)} | layer {winner.layer}, position {winner.position}"
        f"{'' if same else ' (plain: ' + str((slow.proposal.layer, slow.proposal.position)) + ')'} "
        f"| {abs((winner.bypass or 0.0) - slow.bypass):.0e} | {plain.tokens} | {ours.tokens} | "
        f"{plain.tokens / ours.tokens:.1f} | {middle - start:.1f} | {end - middle:.1f} | "
        f"{(middle - start) / (end - middle):.1f} |",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(
        "| model | candidates | winner | bypass differs by | tokens, plain loop | tokens, ours | "
        "ratio | seconds, plain loop | seconds, ours | ratio |\n"
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, folder in trained_models().items():
        compare(name, folder)


if __name__ == "__main__":
    main()
