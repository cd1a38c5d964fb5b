"""The recipe: what changes the artifact. It enters the record; runtime and tokens do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abl_hub.directions.contrast import SplitSizes
from abl_hub.evaluation.tasks import Tasks

DEFAULT_METHODS = ("projected", "difference")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that must be the same for the artifact to be the same.

    Args:
        source: Hub id or local folder of the chat model.
        revision: branch, tag or commit of it.
        positive: prompt set that shows the behaviour.
        negative: prompt set that does not.
        sizes: prompts a side; None takes the paper's where there are enough.
        behaviour: name of the contrast.
        methods: directions that are tried; the best on validation prompts is used.
        rank: most directions that a method may remove together; methods that find one are not
            concerned.
        strength: 1 removes the direction, 0 leaves it.
        strengths: "one" strength for all writers, "fit" one a group of writers by gradient, or
            "auto": fit where validation prompts say that one is not good enough.
        budget: evaluations of loss and gradient for the first point of the fit.
        induce: add the direction instead of removing it, as a weight edit.
        layers: first and last layer that is edited; None is all.
        writers: patterns of parameter names (`*` and `?`), each alone or with `=` and a factor of
            the strength; only these writers are edited, the last that fits counts. None is
            all of them.
        untie: give an output head that is tied to the embedding its own, unedited matrix in the
            merged model; otherwise the edit changes the head too.
        seed: of the splits and of the random control.
        dtype: number format while measuring; None keeps the checkpoint's. The edit itself is
            always computed from the checkpoint's own precision.
        load_in: "4bit" or "8bit" while measuring, None loads the model as it is.
        rounding: of edited weights, "nearest" or "cancelling".
        delta_profile: "auto", "portable" or "complete".
        max_new_tokens: length of the replies that are judged.
        markers: openings that show the behaviour; None takes those of refusals.
        judges: asked besides the markers: "first-token", "classifier:ORG/MODEL[@REV]#LABEL",
            "guard:ORG/MODEL[@REV]#WORD", or the name of one that another package offers.
        judge_template: text with {prompt} and {reply} that classifiers and guards are shown; None
            is a pair of texts, or the guard's own chat template.
        random_draws: random directions in the control.
        system: system prompt put before every instruction.
        response_prefix: text put behind every prompt, so that what follows it is judged; None
            finds what all replies begin with, "" puts nothing there.
        test_sets: named test sets, or KIND:PROMPTS, asked before and after.
        test_set_limit: most prompts of each.
        tasks: asked through lm-eval, before and after.
        trust_remote_code: run code from the model's repository, and of lm-eval's metrics.
    """

    source: str
    revision: str | None = None
    positive: str
    negative: str
    sizes: SplitSizes | None = None
    behaviour: str = "refusal"
    methods: tuple[str, ...] = DEFAULT_METHODS
    rank: int = 3
    strength: float = 1.0
    strengths: Literal["auto", "one", "fit"] = "auto"
    budget: int = 9
    induce: bool = False
    layers: tuple[int, int] | None = None
    writers: tuple[str, ...] | None = None
    untie: bool = True
    seed: int = 0
    dtype: str | None = None
    load_in: Literal["4bit", "8bit"] | None = None
    rounding: Literal["nearest", "cancelling"] = "nearest"
    delta_profile: Literal["auto", "portable", "complete"] = "auto"
    max_new_tokens: int = 64
    markers: tuple[str, ...] | None = None
    judges: tuple[str, ...] = ()
    judge_template: str | None = None
    random_draws: int = 3
    system: str | None = None
    response_prefix: str | None = None
    test_sets: tuple[str, ...] = ()
    test_set_limit: int = 200
    tasks: Tasks | None = None
    trust_remote_code: bool = False
