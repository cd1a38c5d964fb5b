"""`convert`: all stages, one after the other, into a folder that appears when it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from abl_hub.hub.source import local_folder
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record
from abl_hub.stages.analyse import analyse
from abl_hub.stages.apply import apply
from abl_hub.stages.card import write_cards
from abl_hub.stages.evaluate import evaluate
from abl_hub.stages.extract import extract
from abl_hub.stages.inputs import changed_since, located
from abl_hub.stages.output import Making, making
from abl_hub.stages.runtime import Runtime


def convert(
    recipe: Recipe,
    out: Path | str,
    runtime: Runtime | None = None,
    *,
    command: str = "",
    overwrite: bool = False,
    keep_completions: bool = False,
    references: Mapping[str, str] | None = None,
    stream: bool = False,
) -> Record:
    """Source to direction, edit, evaluation and cards, in `out`.

    Args:
        recipe: what to make.
        out: appears whole or not at all; until then `OUT.partial` holds what is done, and the same
            call goes on from there, if model and prompts have not changed.
        runtime: where and how; the defaults suit a CPU.
        command: the command line, for the record.
        overwrite: replace an earlier output.
        keep_completions: write the judged replies to `out/completions.jsonl` (never pushed).
        references: prompt → the exactly right reply, where it is known.
        stream: leave the merged model to `push`, which sends it shard by shard; the edit is then
            evaluated as hooks.

    Raises:
        AblHubError: one of its kinds; see `abl_hub.errors`.
    """
    recipe, out = located(recipe), Path(out)
    # The recipe is the caller's, and so is its consent.
    runtime = replace(runtime or Runtime(), trust_remote_code=recipe.trust_remote_code)
    source = local_folder(recipe.source, recipe.revision)
    with making(out, overwrite=overwrite, source=source) as place:
        partial = place.folder
        record = _resumed(place, recipe, runtime)
        if record is None:
            place.start_over()
            record = extract(recipe, partial, runtime, command=command)
        if record.agreement is None:
            record = apply(partial, runtime, merged=not stream)
        if record.evaluation is None:
            record = evaluate(
                partial,
                runtime,
                references=references,
                keep_completions=keep_completions,
                tasks=recipe.tasks,
            )
        if record.analysis is None:
            record = analyse(partial, runtime)
        write_cards(partial)
        place.publish()
    return record


def _resumed(place: Making, recipe: Recipe, runtime: Runtime) -> Record | None:
    """What an interrupted run got to, if model and prompts are still what it began with."""
    record = place.resumed(recipe)
    if record is None:
        return None
    changed = changed_since(record, runtime)
    if changed is not None:
        runtime.progress.note(f"{changed} since {place.folder} was begun: starting over")
        return None
    runtime.progress.note(f"Going on with {place.folder}")
    return record
