"""The stages of `convert`, each a command that reads what the one before wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from abl_hub.cli.asked import command_line, recipe_of, runtime_of, tasks_of
from abl_hub.cli.options import (
    hub_options,
    keep_option,
    overwrite_option,
    recipe_options,
    runtime_options,
    tasks_options,
)
from abl_hub.cli.output import Output
from abl_hub.cli.sections import Sectioned

_folder = click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.command(cls=Sectioned)
@click.argument("source")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for direction.safetensors and record.json.",
)
@overwrite_option
@recipe_options
@runtime_options
@hub_options
@click.pass_obj
def extract(output: Output, /, source: str, out: Path, overwrite: bool, **options: Any) -> None:
    """Find the direction in SOURCE and select it on validation prompts.

    \b
    abl-hub extract org/model -o out
    """
    from abl_hub.cli.show import show_direction
    from abl_hub.hub.source import local_folder
    from abl_hub.stages.crew import gathered
    from abl_hub.stages.extract import extract as run
    from abl_hub.stages.output import making

    command = command_line()
    runtime = runtime_of(output, options)
    recipe = recipe_of(source, options)
    with gathered(recipe, runtime) as mine:
        if mine is None:
            return
        base = local_folder(recipe.source, recipe.revision)
        with making(out, overwrite=overwrite, source=base) as place:
            place.start_over()
            record = run(recipe, place.folder, mine, command=command)
            place.publish()
    show_direction(output, record, out)


@click.command()
@_folder
@click.option(
    "--invert", is_flag=True, help="Write OUT/undo: the delta from the edited weights to the base."
)
@runtime_options
@hub_options
@click.pass_obj
def apply(output: Output, /, out: Path, invert: bool, **options: Any) -> None:
    """Write the edit of OUT as merged weights and as a delta, and check that they agree.

    \b
    abl-hub apply out
    abl-hub apply out --invert
    """
    if invert:
        from abl_hub.stages.undo import undo

        undone = undo(out, runtime_of(output, options))
        near = ""
        if undone.apart is not None:
            near = (
                f". On the merged model it gives the base to within {undone.apart:.1e} "
                f"(largest logit difference; without it {undone.edited_apart:.2g})"
            )
        output.line(f"Wrote {undone.folder}{near}")
        if undone.left_out:
            output.note(
                f"{len(undone.left_out)} of the edited writers stay edited "
                f"({undone.left_out[0].parameter}, …): {undone.left_out[0].reason}"
            )
        output.result(
            str(undone.folder),
            {
                "undo": str(undone.folder),
                "apart": undone.apart,
                "edited_apart": undone.edited_apart,
                "left_out": [left.parameter for left in undone.left_out],
            },
        )
        return
    from abl_hub.cli.show import show_forms
    from abl_hub.stages.apply import apply as run

    show_forms(output, run(out, runtime_of(output, options)), out)


@click.command(cls=Sectioned)
@_folder
@keep_option
@tasks_options
@runtime_options
@hub_options
@click.pass_obj
def evaluate(output: Output, /, out: Path, keep_completions: bool, **options: Any) -> None:
    """Measure what the edit in OUT did on held-out prompts, against random directions.

    \b
    abl-hub evaluate out
    abl-hub evaluate out --tasks mmlu,gsm8k --tasks-limit 200
    """
    from abl_hub.cli.show import show_evaluation
    from abl_hub.stages.evaluate import evaluate as run

    tasks = tasks_of(options)
    test_sets, limit = options.pop("test_sets"), options.pop("test_set_limit")
    runtime = runtime_of(output, options)
    record = run(
        out,
        runtime,
        keep_completions=keep_completions,
        tasks=tasks,
        test_sets=test_sets,
        test_set_limit=limit,
    )
    show_evaluation(output, record)


@click.command()
@_folder
@click.pass_obj
def card(output: Output, /, out: Path) -> None:
    """Write the model cards of OUT from its record.

    \b
    abl-hub card out
    """
    from abl_hub.stages.card import write_cards

    written = write_cards(out)
    for path in written:
        output.line(f"Wrote {path}")
    output.result(str(out), {"cards": [str(path) for path in written]})
