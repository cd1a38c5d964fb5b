"""Options that several commands share; what they make is `abl_hub.cli.asked`'s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from abl_hub.cli.values import Finite, FiniteRange, Seed, Text

if TYPE_CHECKING:
    pass

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

_METHODS = (
    "projected",
    "difference",
    "winsorized",
    "pca",
    "leace",
    "svd",
    "som",
    "successive",
    "caa",
    "rdo",
    "cone",
    "category",
    "harm",
)


def _layers(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, _, last = value.partition("-")
    if not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise click.BadParameter(f"{value!r} is not FIRST-LAST, as in 4-20")
    return int(first), int(last)


def _all(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


recipe_options = _all(
    click.option("--revision", metavar="NAME", help="Branch, tag or commit of SOURCE."),
    click.option(
        "--positive",
        metavar="PROMPTS",
        help="Prompts that show the behaviour: Hub dataset org/name[@revision][:split][#column], "
        "or a .txt, .jsonl, .csv or .parquet file.  [default: mlabonne/harmful_behaviors]",
    ),
    click.option(
        "--negative",
        metavar="PROMPTS",
        help="Prompts that do not show it, given likewise.  [default: mlabonne/harmless_alpaca]",
    ),
    click.option(
        "--train",
        type=click.IntRange(1),
        metavar="N",
        help="Prompts a side to extract from.  [default: 128, or fewer where there are fewer]",
    ),
    click.option(
        "--validation",
        type=click.IntRange(1),
        metavar="N",
        help="Prompts a side to select on.  [default: 32, or fewer]",
    ),
    click.option(
        "--test",
        type=click.IntRange(1),
        metavar="N",
        help="Prompts a side to evaluate on.  [default: 100, or fewer]",
    ),
    click.option(
        "--seed",
        type=Seed(),
        metavar="N",
        default=0,
        show_default=True,
        help="Draws the prompts of each part, and the control's random directions.",
    ),
    click.option(
        "--system",
        metavar="TEXT",
        help="System prompt put before every instruction.  [default: the chat template's]",
    ),
    click.option(
        "--response-prefix",
        metavar="TEXT",
        help="Put behind every prompt, as in '<think></think>'; what follows is judged.  "
        "[default: what all replies of this model begin with]",
    ),
    click.option(
        "--behaviour",
        type=Text(),
        default="refusal",
        show_default=True,
        help="Name of what the prompts show; it stands in records and cards.",
    ),
    click.option(
        "--method",
        "methods",
        multiple=True,
        type=click.Choice(_METHODS),
        help="Direction to try; may be repeated, the best on validation prompts is taken.  "
        "[default: projected and difference]",
    ),
    click.option(
        "--rank",
        type=click.IntRange(1),
        metavar="N",
        default=3,
        show_default=True,
        help="Most directions that svd, som, successive, cone and category may remove together.",
    ),
    click.option(
        "--induce",
        is_flag=True,
        help="Add the direction behind its layer, at its own length times --strength, instead of "
        "removing it: the behaviour is strengthened.",
    ),
    click.option(
        "--strength",
        type=Finite(),
        metavar="NUMBER",
        default=1.0,
        show_default=True,
        help="How much is removed: 1 removes the direction, 0 leaves it, 2 reflects it.",
    ),
    click.option(
        "--strengths",
        type=click.Choice(["auto", "one", "fit"]),
        default="auto",
        show_default=True,
        help="One strength for all writers, or one a group of writers, fitted by gradient; auto "
        "fits where validation prompts say that one leaves the behaviour or costs KL (> 0.01 nats "
        "a token), and takes what they say is better.",
    ),
    click.option(
        "--budget",
        type=click.IntRange(1),
        metavar="N",
        default=9,
        show_default=True,
        help="With fitted strengths: gradients for the first point of the fit.",
    ),
    click.option(
        "--layers",
        metavar="FIRST-LAST",
        callback=lambda _ctx, _param, value: _layers(value),
        help="Edit only these layers, 0-based.  [default: all, and the embedding]",
    ),
    click.option(
        "--writer",
        "writers",
        multiple=True,
        metavar="PATTERN[=STRENGTH]",
        help="Edit only writers whose parameter name fits, as in '*.o_proj.weight', or as strongly "
        "as '*.o_proj.weight=0.5' says; may be repeated, the last that fits counts. `abl-hub "
        "trace` lists them.  [default: all]",
    ),
    click.option(
        "--no-untie",
        "untie",
        flag_value=False,
        default=True,
        help="Where embedding and output head are one matrix: edit both.  [default: the embedding "
        "alone, and the head becomes a matrix of its own]",
    ),
    click.option(
        "--rounding",
        type=click.Choice(["nearest", "cancelling"]),
        default="nearest",
        show_default=True,
        help="How edited weights are rounded: to the nearest, or so that what rounding leaves of "
        "the direction cancels, for 16 bits.",
    ),
    click.option(
        "--delta-profile",
        type=click.Choice(["auto", "portable", "complete"]),
        default="auto",
        show_default=True,
        help="Where the delta must load: complete, in transformers and PEFT; portable, linear "
        "layers alone, in vLLM, SGLang and llama.cpp too; auto, portable where that is the whole "
        "edit.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Numbers to measure in; the edit keeps the checkpoint's.  [default: the checkpoint's]",
    ),
    click.option(
        "--load-in",
        type=click.Choice(["4bit", "8bit"]),
        help="Quantise while measuring, where the model does not fit otherwise; the edit is of the "
        "checkpoint's own weights. Needs `pip install abl-hub[bitsandbytes]`.  [default: no]",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        metavar="N",
        default=64,
        show_default=True,
        help="Most tokens of a reply that is judged.",
    ),
    click.option(
        "--marker",
        "markers",
        type=Text(),
        multiple=True,
        metavar="TEXT",
        help="What a reply that shows the behaviour opens with; may be repeated.  "
        "[default: refusal phrases]",
    ),
    click.option(
        "--judge",
        "judges",
        multiple=True,
        metavar="JUDGE",
        help="Ask this judge too, besides the markers: first-token, "
        "classifier:ORG/MODEL[@REVISION]#LABEL, a guard that writes its verdict, "
        "guard:ORG/MODEL[@REVISION]#WORD, or one that an installed package offers; may be "
        "repeated.",
    ),
    click.option(
        "--judge-template",
        type=Text(),
        metavar="TEXT",
        help="What classifiers and guards are shown, with {prompt} and {reply}.  [default: a pair "
        "of texts; a guard's own chat template]",
    ),
    click.option(
        "--random-draws",
        type=click.IntRange(1),
        metavar="N",
        default=3,
        show_default=True,
        help="Random directions in the control.",
    ),
)

tasks_options = _all(
    click.option(
        "--test-set",
        "test_sets",
        multiple=True,
        metavar="SET",
        help="Ask base and edited model this set too: jailbreakbench, harmbench, strongreject, "
        "sorry-bench (refusal), xstest, or-bench, jailbreakbench-benign (over-refusal), or "
        "refusal:PROMPTS, over-refusal:PROMPTS; may be repeated.",
    ),
    click.option(
        "--test-set-limit",
        type=click.IntRange(1),
        metavar="N",
        default=200,
        show_default=True,
        help="Most prompts of each test set.",
    ),
    click.option(
        "--tasks",
        metavar="TASK,…",
        help="Ask these tasks of lm-evaluation-harness before and after, as in "
        "mmlu,gsm8k,arc_challenge; needs `pip install abl-hub[eval]`.",
    ),
    click.option(
        "--tasks-path",
        type=click.Path(exists=True, file_okay=False),
        help="Folder of your own tasks for lm-eval, as YAML; Python that they name is run.",
    ),
    click.option(
        "--tasks-limit",
        type=click.IntRange(1),
        metavar="N",
        help="Only the first N questions of each task.  [default: all]",
    ),
    click.option(
        "--tasks-chat-template",
        is_flag=True,
        help="Ask tasks through the chat template.  [default: without, as lm-eval]",
    ),
)

trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python that lies in the model's repository."
)

runtime_options = _all(
    click.option(
        "--device",
        metavar="NAME",
        default="cpu",
        show_default=True,
        help="A torch device, as cuda, or auto to spread the model over all there are.",
    ),
    click.option(
        "--rows",
        type=click.IntRange(1),
        metavar="N",
        default=32,
        show_default=True,
        help="Prompts a batch.",
    ),
    click.option(
        "--memory",
        type=FiniteRange(0),
        metavar="GB",
        help="Memory that a loaded model may take; the edit of a larger one is checked on its "
        "files alone.  [default: what is free]",
    ),
    trust_option,
)

hub_options = _all(
    click.option(
        "--cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where the Hub client keeps downloads.  [default: its own, or HF_HUB_CACHE]",
    ),
    click.option(
        "--token", metavar="TEXT", help="Hub token.  [default: HF_TOKEN, or the stored login]"
    ),
)

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
keep_option = click.option(
    "--keep-completions",
    is_flag=True,
    help="Keep the judged replies in completions.jsonl. They are never pushed.",
)
