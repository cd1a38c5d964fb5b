"""Stage 2 of `--induce`: the direction added instead of removed, in both forms, checked.

The way of `abl_hub.stages.apply`, for an `Addition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from abl_hub.directions.direction import Direction
from abl_hub.edits.addition import Addition, added, addition
from abl_hub.edits.addition_delta import write_added_delta
from abl_hub.edits.addition_files import plan_added, write_added
from abl_hub.edits.checkpoint import Merged
from abl_hub.errors import EditError, NoMergedFormError
from abl_hub.hub.source import Source
from abl_hub.model.meta import wrapper_of
from abl_hub.model.writers import Trace
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import (
    AgreementRecord,
    EditRecord,
    Record,
    WriterRecord,
)
from abl_hub.stages.agreement import compare_forms, refuse_disagreement
from abl_hub.stages.forms import DELTA, MERGED, delta_record, merged_record
from abl_hub.stages.memory import why_not_loaded
from abl_hub.stages.replacing import making_forms, put_in_place
from abl_hub.stages.runtime import Runtime

EXACTNESS = "added"


def refuse_other_options(recipe: Recipe) -> None:
    """An addition is one vector at one place: what shapes a removal does not concern it.

    Raises:
        EditError: such an option was given.
    """
    given = {
        "--layers": recipe.layers is not None,
        "--writer": recipe.writers is not None,
        "--strengths fit": recipe.strengths == "fit",
        "--rounding cancelling": recipe.rounding != "nearest",
        "--delta-profile portable": recipe.delta_profile == "portable",
    }
    for option, was in given.items():
        if recipe.induce and was:
            raise EditError(
                f"--induce does not go with {option}",
                why="it adds one vector behind one layer",
                next_step=f"Leave {option} out; --strength says how much is added",
            )


def recorded_addition(
    recipe: Recipe, direction: Direction, blueprint: PreTrainedModel, trace: Trace
) -> Addition:
    """What `--induce` adds: the direction at its own length, times the strength.

    Raises:
        UnsupportedModelError: nothing behind its layer can carry a constant.
    """
    return addition(blueprint, trace, direction.layer, recipe.strength * direction.addition)


def apply_addition(
    record: Record,
    direction: Direction,
    out: Path,
    source: Source,
    blueprint: PreTrainedModel,
    trace: Trace,
    asked: Sequence[str],
    runtime: Runtime,
) -> Record:
    """Write `out/merged`, where a checkpoint can hold it, and `out/delta`; add them to the record.

    Raises:
        UnsupportedModelError: nothing behind the direction's layer can carry a constant.
        EditError: the forms disagree; then `out` is as it was.
    """
    recipe = record.recipe
    edit = recorded_addition(recipe, direction, blueprint, trace)
    with making_forms(out) as made:
        written, refused = _write_merged(edit, made, source, blueprint, runtime)
        delta = write_added_delta(
            edit,
            made / DELTA,
            model=blueprint,
            base=source.repo or source.folder.name,
            revision=source.commit,
        )
        agreement = _agreement(
            edit, record, made, source, blueprint, asked, runtime, merged=written is not None
        )
        record = replace(
            record,
            edit=EditRecord(
                digest=edit.digest,
                rank=1,
                exactness=EXACTNESS,
                writers=(
                    WriterRecord(
                        parameter=edit.place.bias,
                        axis=0,
                        shape=(len(edit.vector),),
                        strength=recipe.strength,
                        rescaled=False,
                    ),
                ),
                rounding=recipe.rounding,
                language_path_of=wrapper_of(
                    source.folder, blueprint, trust_remote_code=runtime.trust_remote_code
                ),
            ),
            merged=merged_record(written) if written else None,
            delta=delta_record(delta),
            agreement=agreement,
            refused=refused,
            evaluation=None,
        )
        put_in_place(made, out, record)
    return record


def _write_merged(
    edit: Addition, out: Path, source: Source, blueprint: PreTrainedModel, runtime: Runtime
) -> tuple[Merged | None, dict[str, str]]:
    """The merged form, or why there is none."""
    try:
        plan = plan_added(edit, source.folder, model=blueprint)
    except NoMergedFormError as error:
        runtime.progress.note(f"No merged model, only a delta. {error}")
        return None, {MERGED: str(error)}
    merged = write_added(
        edit,
        source.folder,
        out / MERGED,
        model=blueprint,
        plan=plan,
        progress=runtime.progress,
    )
    return merged, {}


def _agreement(
    edit: Addition,
    record: Record,
    out: Path,
    source: Source,
    blueprint: PreTrainedModel,
    asked: Sequence[str],
    runtime: Runtime,
    *,
    merged: bool,
) -> AgreementRecord:
    """How far the written forms are from the addition while the model runs.

    Raises:
        EditError: farther than rounding explains.
    """
    unloaded = why_not_loaded(blueprint, record.recipe, runtime)
    if unloaded is not None:
        runtime.progress.note(f"{unloaded}: the forms are not compared.")
        return AgreementRecord(prompts=0)
    wide = torch.float32, torch.float64
    narrow = blueprint.dtype not in wide or record.recipe.dtype not in (None, "float32")
    [agreement] = compare_forms(
        partial(added, edit),
        None,
        source.folder,
        out,
        [out / DELTA],
        asked,
        record,
        runtime,
        whole=True,
        narrow=narrow,
    )
    refuse_disagreement(
        agreement,
        merged_is_whole=merged,
        delta_is_whole=True,
        narrow=narrow,
    )
    return agreement
