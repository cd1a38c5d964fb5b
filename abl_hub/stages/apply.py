"""Stage 2: from the direction to the edit on disk, in both forms, checked against each other."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from abl_hub.edits.checkpoint import Merged, write_files
from abl_hub.edits.delta import Delta, write_delta
from abl_hub.edits.delta_products import products_of_checkpoint
from abl_hub.edits.edit import Edit, Gains
from abl_hub.edits.hooks import applied
from abl_hub.edits.keys import CheckpointTensors
from abl_hub.edits.merged_files import MergedFiles
from abl_hub.edits.shards import CONFIG, open_shards, read_json
from abl_hub.errors import NoDeltaError, NoMergedFormError
from abl_hub.hub.source import Source
from abl_hub.model.gains import gains_from_tensors
from abl_hub.model.meta import meta_model, wrapper_of
from abl_hub.model.trace import trace_writers
from abl_hub.model.writers import Trace
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import (
    EditRecord,
    Record,
    WriterRecord,
    load_record,
)
from abl_hub.stages.agreement import checked_weights, compare_forms, refuse_disagreement
from abl_hub.stages.edit import recorded_edit
from abl_hub.stages.extract import recorded_direction
from abl_hub.stages.forms import DELTA, MERGED, delta_record, exactness, merged_record
from abl_hub.stages.induce import apply_addition
from abl_hub.stages.inputs import few_prompts, recorded_prompts, recorded_source
from abl_hub.stages.memory import why_not_loaded
from abl_hub.stages.replacing import making_forms, put_in_place
from abl_hub.stages.runtime import Runtime


def apply(out: Path, runtime: Runtime, *, merged: bool = True) -> Record:
    """Write `out/merged` and `out/delta`, check both, and add them to the record.

    Args:
        merged: False leaves the merged model out: `push` then makes it shard by shard.

    Raises:
        SourceError: the source has changed since `extract`.
        UnsupportedModelError, EditError: the edit cannot be exact, or fails its check; then
            `out` is as it was.
    """
    record = load_record(out)
    recipe = record.recipe
    asked = few_prompts(recorded_prompts(record, runtime))
    source = recorded_source(record, runtime)
    blueprint = meta_model(source.folder, trust_remote_code=runtime.trust_remote_code)
    trace = trace_writers(blueprint)
    if recipe.induce:
        return apply_addition(
            record, recorded_direction(record, out), out, source, blueprint, trace, asked, runtime
        )
    edit = recorded_edit(record, recorded_direction(record, out), trace)
    unloaded = why_not_loaded(blueprint, recipe, runtime)
    wide = torch.float32, torch.float64
    narrow = blueprint.dtype not in wide or recipe.dtype not in (None, "float32")
    with making_forms(out) as made:
        written = _write(
            edit,
            made,
            source,
            blueprint,
            trace,
            recipe,
            runtime,
            merged=merged,
            lighter=made / "portable" if unloaded is None else None,
        )
        if unloaded is None:
            compared = compare_forms(
                partial(applied, edit, gains=written.gains),
                edit.directions,
                source.folder,
                made,
                [one.folder for one in written.deltas],
                asked,
                record,
                runtime,
                whole=all(strength == 1.0 for strength in edit.strengths),
                narrow=narrow,
            )
        else:
            runtime.progress.note(f"{unloaded}: the written weights are checked instead.")
            compared = (checked_weights(edit, made / MERGED, runtime),)
        agreement, *lighter = compared
        if lighter:
            agreement = replace(agreement, portable_kl=_finite(lighter[0].delta_kl))
        delta = written.deltas[0] if written.deltas else None
        refuse_disagreement(
            agreement,
            # What a quantised checkpoint rounds away is more than any fixed share.
            merged_is_whole=written.files is not None
            and not written.files.plan.changes_head
            and getattr(blueprint.config, "quantization_config", None) is None,
            delta_is_whole=delta is not None and delta.faithful,
            narrow=narrow,
        )
        files = written.files
        record = replace(
            record,
            edit=EditRecord(
                digest=edit.digest,
                rank=edit.rank,
                exactness=exactness(
                    edit, changes_head=files is not None and files.plan.changes_head
                ),
                writers=tuple(
                    WriterRecord(
                        parameter=writer.parameter,
                        axis=writer.axis,
                        shape=writer.shape,
                        strength=strength,
                        rescaled=writer.rescaled,
                    )
                    for writer, strength in zip(edit.writers, edit.strengths, strict=True)
                ),
                rounding=recipe.rounding,
                language_path_of=wrapper_of(
                    source.folder, blueprint, trust_remote_code=runtime.trust_remote_code
                ),
            ),
            merged=merged_record(written.merged) if written.merged else None,
            delta=delta_record(delta) if delta else None,
            agreement=agreement,
            refused=written.refused,
            evaluation=None,
        )
        put_in_place(made, out, record)
    return record


def _finite(number: float | None) -> float | None:
    """None where a measurement failed: of a delta that is thrown away, that is enough to know."""
    return number if number is not None and math.isfinite(number) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Written:
    """The forms of one edit on disk, not compared yet.

    Args:
        files: how the merged model is made; None where no checkpoint can hold the edit.
        merged: what was written of it; None also where it is made later.
        deltas: the delta in the output, and where that is for PEFT alone, one for other engines,
            which is measured and thrown away. Empty where no adapter can hold the edit.
        refused: form → why there is none.
    """

    files: MergedFiles | None
    merged: Merged | None
    deltas: tuple[Delta, ...]
    gains: Gains
    refused: dict[str, str]


def _write(
    edit: Edit,
    out: Path,
    source: Source,
    blueprint: PreTrainedModel,
    trace: Trace,
    recipe: Recipe,
    runtime: Runtime,
    *,
    merged: bool,
    lighter: Path | None,
) -> _Written:
    """Write all forms that can be had into the folder `out`.

    Args:
        lighter: where a delta for other engines is put to be measured; None if it is not.

    Raises:
        EditError: there is none, or one cannot be written.
    """
    files, written, refused = None, None, {}
    try:
        files = MergedFiles(
            edit, source.folder, model=blueprint, rounding=recipe.rounding, untie=recipe.untie
        )
    except NoMergedFormError as error:
        refused[MERGED] = str(error)
        runtime.progress.note(f"No merged model, only a delta. {error}")
    if merged and files is not None:
        written = write_files(files, out / MERGED, progress=runtime.progress)
    tensors = CheckpointTensors(
        blueprint, open_shards(source.folder).tensors, read_json(source.folder, CONFIG)
    )
    gains = gains_from_tensors(blueprint, trace.writers, tensors.read_parameter)
    write = partial(
        write_delta,
        edit,
        model=blueprint,
        read=tensors.read_parameter,
        gains=gains,
        base=source.repo or source.folder.name,
        revision=source.commit,
        product=products_of_checkpoint(tensors),
        progress=runtime.progress,
    )
    deltas = []
    try:
        deltas.append(write(out / DELTA, profile=recipe.delta_profile))
        if recipe.delta_profile == "auto" and deltas[0].profile == "complete" and lighter:
            with suppress(NoDeltaError):
                deltas.append(write(lighter, profile="portable"))
    except NoDeltaError as error:
        if files is None:
            raise
        refused[DELTA] = str(error)
        runtime.progress.note(f"No delta, only a merged model. {error}")
    return _Written(files=files, merged=written, deltas=tuple(deltas), gains=gains, refused=refused)
