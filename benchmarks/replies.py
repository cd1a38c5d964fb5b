"""Replies of an arm that talks like the base: generated, and with the base's replies as drafts.

    python benchmarks/replies.py [--runs 3]

Arms are those of an evaluation: a random direction removed, asked both sides' prompts, and the
selected kind of edit, asked the prompts that were answered before. Both ways run in turn on the
same prompts; the replies are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from abl_hub.demo.corpus import prompts
from abl_hub.directions.contrast import SplitSizes, make_contrast
from abl_hub.directions.means import mean_activations
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import prepared
from abl_hub.evaluation.subject import Subject
from abl_hub.model.chat import load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.generate import Reply, greedy_replies
from abl_hub.model.trace import trace_writers
from benchmarks.models import trained_models

PROMPTS, LENGTH = 100, 64


def replies(
    subject: Subject, asked: list[str], drafts: list[Reply] | None
) -> tuple[list[Reply], float]:
    start = time.perf_counter()
    with subject.active():
        found = greedy_replies(subject.chat, asked, max_new_tokens=LENGTH, drafts=drafts)
    return found, time.perf_counter() - start


def compare(name: str, folder: Path, runs: int) -> None:
    chat = load_chat_model(folder)
    positive = [prompt for prompt, _ in prompts().positive]
    negative = [prompt for prompt, _ in prompts().negative]
    contrast = make_contrast(
        positive, negative, sizes=SplitSizes(train=120, validation=0, test=PROMPTS)
    )
    means = mean_activations(chat, contrast)
    layer = len(chat.layers) // 2
    found = without(difference_in_means(means), means.negative.activations)[layer, -1]
    trace = trace_writers(chat.model)
    between = gains(chat.model, trace.writers)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))

    def arm(direction: torch.Tensor) -> Subject:
        edit = remove(direction[None], trace.writers)
        return Subject(chat=chat, active=prepared(edit, chat.model, between))

    both = [*contrast.positive.test, *contrast.negative.test]
    for what, subject, asked in (
        ("random direction", arm(noise), both),
        ("edited, answered prompts", arm(found), list(contrast.negative.test)),
    ):
        base, _ = replies(Subject(chat=chat), asked, None)
        plain, drafted, same = [], [], set()
        for _ in range(runs):
            generated, seconds = replies(subject, asked, None)
            plain.append(seconds)
            again, seconds = replies(subject, asked, base)
            drafted.append(seconds)
            same.add(again == generated)
        alike = sum(one == other for one, other in zip(base, generated, strict=True)) / len(asked)
        tokens = sum(len(one.tokens) for one in generated) / len(asked)
        ratio = statistics.median(a / b for a, b in zip(plain, drafted, strict=True))
        print(
            f"| {name} | {what} | {alike:.2f} | {tokens:.0f} | {statistics.median(plain):.2f} | "
            f"{statistics.median(drafted):.2f} | {ratio:.1f} | {'yes' if all(same) else 'NO'} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(
        "| model | arm | replies like the base's | tokens a reply | seconds, generated | "
        "seconds, drafted | ratio | same replies |\n|---|---|---:|---:|---:|---:|---:|---|"
    )
    for name, folder in trained_models().items():
        compare(name, folder, arguments.runs)


if __name__ == "__main__":
    main()
