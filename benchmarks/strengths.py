"""Fitted strengths against a TPE search: refusals, KL and seconds, side by side.

    python benchmarks/strengths.py [--trials 60]

Both start from the loaded model and its means, both see the same training and validation prompts,
and both are judged on held-out prompts: refusals and non-answers by whole replies, KL over the
base's whole replies and of the first token. Time is from the means to the chosen edit. The line
"front" is that point of the fitted front which costs least of those that fail no more often than
the search's edit: what a user who accepts as many failures would take. The line "one" is the same
direction at one strength for all writers, which `--strengths auto` keeps where it is good enough.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from abl_hub.demo.corpus import prompts
from abl_hub.directions.contrast import Contrast, SplitSizes, make_contrast
from abl_hub.directions.evidence import Evidence
from abl_hub.directions.means import mean_activations
from abl_hub.directions.methods import METHODS
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import behaviour_tokens, select, validate
from abl_hub.edits.edit import Edit, remove
from abl_hub.edits.hooks import Active, prepared
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Trial, baseline, trial
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.trace import trace_writers
from abl_hub.progress import SILENT
from abl_hub.report.recipe import Recipe
from abl_hub.stages.edit import asked_edit, scaled
from abl_hub.stages.strengths import choose_strengths, lesson_of
from abl_hub.strengths.groups import groups
from benchmarks.models import trained_models
from benchmarks.tpe_search import search

MAX_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Ours:
    """What our way makes of a model.

    Args:
        edited: with the edit that it takes.
        what: that edit is.
        front: with each point of the fitted front.
        one: with one strength for all writers, along the direction that was selected.
        until_one: seconds until that one was known.
    """

    edited: Subject
    what: str
    front: list[Subject]
    one: Subject
    until_one: float


def fitted(chat: ChatModel, contrast: Contrast, evidence: Evidence) -> Ours:
    """Our way: select one direction, fit strengths, judge the front on validation prompts."""
    start = time.perf_counter()
    trace = trace_writers(chat.model)
    between = gains(chat.model, trace.writers)

    @cache
    def ready(proposal: Proposal) -> Active:
        return prepared(remove(proposal.basis, trace.writers), chat.model, between)

    def ablate(proposal: Proposal) -> AbstractContextManager[None]:
        return ready(proposal)()

    recipe = Recipe(source="", positive="", negative="", strengths="fit")
    method = "projected"
    selection = select(
        chat,
        METHODS[method](evidence),
        validate(chat, contrast, evidence.behaviour_tokens),
        method=method,
        ablate=ablate,
    )
    until_one = time.perf_counter() - start
    against = baseline(
        Subject(chat=chat),
        contrast.positive.validation,
        contrast.negative.validation,
        protocol=Protocol(max_new_tokens=MAX_NEW_TOKENS),
    )
    direction, strengths = choose_strengths(
        chat,
        against,
        partial(lesson_of, chat, contrast, evidence.behaviour_tokens, rows=32),
        {method: (selection.direction, *selection.alternatives)},
        (),
        trace,
        between,
        recipe,
        SILENT,
    )
    whole, names = asked_edit(recipe, direction, trace), groups(trace)
    front = [scaled(whole, names, point.strengths) for point in strengths.points]
    edit = whole if strengths.chosen is None else front[strengths.chosen]

    def subject(edit: Edit) -> Subject:
        return Subject(chat=chat, active=prepared(edit, chat.model, between))

    return Ours(
        edited=subject(edit),
        what=f"layer {direction.layer}, {sum(s > 0.01 for s in edit.strengths)} writers",
        front=[subject(point) for point in front],
        one=subject(asked_edit(recipe, selection.direction, trace)),
        until_one=until_one,
    )


def searched(
    chat: ChatModel, contrast: Contrast, evidence: Evidence, trials: int
) -> tuple[Subject, str]:
    """The baseline, on the same projected directions at the prompt's last token."""
    means = evidence.means
    directions = without(difference_in_means(means), means.negative.activations)[:, -1]
    found = search(
        chat,
        trace_writers(chat.model),
        directions,
        contrast.positive.validation,
        contrast.negative.validation,
        trials=trials,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    return Subject(chat=chat, active=found.active), f"{found.refusals} refusals in its search"


def compare(name: str, folder: Path, trials: int) -> None:
    chat = load_chat_model(folder)
    asked = prompts()
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive],
        [prompt for prompt, _ in asked.negative],
        sizes=SplitSizes(train=120, validation=100, test=100),
    )
    means = mean_activations(chat, contrast)
    evidence = Evidence(
        chat=chat, contrast=contrast, means=means, behaviour_tokens=behaviour_tokens(means)
    )
    held_out = baseline(
        Subject(chat=chat),
        contrast.positive.test,
        contrast.negative.test,
        protocol=Protocol(max_new_tokens=MAX_NEW_TOKENS),
    )
    before = next_token_log_probs(chat, contrast.negative.test).double()

    def line(way: str, edited: Subject, seconds: float, ratio: float, what: str) -> Trial:
        outcome = trial(held_out, edited)
        with edited.active():
            after = next_token_log_probs(chat, contrast.negative.test).double()
        first = float((before.exp() * (before - after)).sum(-1).mean())
        print(
            f"| {name} | {way} | {outcome.failures:.2f} | {outcome.damage:.2f} | "
            f"{outcome.kl:.5f} | {first:.5f} | {seconds:.1f} | {ratio:.1f} | {what} |",
            flush=True,
        )
        return outcome

    start = time.perf_counter()
    ours = fitted(chat, contrast, evidence)
    seconds = time.perf_counter() - start
    line("one", ours.one, ours.until_one, ours.until_one / seconds, "one strength, selected")
    line("fit", ours.edited, seconds, 1.0, ours.what)
    start = time.perf_counter()
    edited, what = searched(chat, contrast, evidence, trials)
    theirs = time.perf_counter() - start
    to_reach = line("TPE", edited, theirs, theirs / seconds, what)
    # The search's edit is one point; where does our front pass it?
    tried = [(trial(held_out, point), point) for point in ours.front]
    as_good = [
        (outcome.kl, index)
        for index, (outcome, _) in enumerate(tried)
        if outcome.failures <= to_reach.failures and outcome.damage <= to_reach.damage
    ]
    if as_good:
        _, index = min(as_good)
        what = f"cheapest of {len(ours.front)} points with no more failures"
        line("front", ours.front[index], seconds, 1.0, what)
    else:
        print(f"| {name} | front | no point fails as rarely ||||||")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(
        f"Held-out prompts; {arguments.trials} TPE trials; {torch.get_num_threads()} thread(s)\n\n"
        "| model | way | failures | damage | KL, whole replies | KL, first token | seconds | "
        "ratio | edit |\n|---|---|---:|---:|---:|---:|---:|---:|---|"
    )
    for name, folder in trained_models().items():
        compare(name, folder, arguments.trials)


if __name__ == "__main__":
    main()
