"""The way back: the delta that takes the edited weights of an output to the base again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel

from abl_hub.edits.addition_delta import write_added_delta
from abl_hub.edits.delta import write_delta
from abl_hub.edits.delta_layout import LeftOut
from abl_hub.edits.delta_products import products_of_checkpoint
from abl_hub.edits.keys import CheckpointTensors
from abl_hub.edits.merged_files import MergedFiles
from abl_hub.edits.peft_skeleton import quiet_about_biases
from abl_hub.edits.shards import CONFIG, open_shards, read_json
from abl_hub.errors import EditError
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.divergence import apart
from abl_hub.model.gains import gains_from_tensors
from abl_hub.model.generate import next_token_logits
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from abl_hub.report.record import load_record
from abl_hub.stages.edit import recorded_edit
from abl_hub.stages.extract import recorded_direction
from abl_hub.stages.forms import MERGED
from abl_hub.stages.induce import recorded_addition
from abl_hub.stages.inputs import recorded_prompts, recorded_source
from abl_hub.stages.memory import why_not_loaded
from abl_hub.stages.runtime import Runtime, dtype_named

UNDO = "undo"
_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class Undone:
    """The inverse delta.

    Args:
        folder: a PEFT adapter for the edited weights.
        left_out: writers that it leaves edited, because no adapter can hold them.
        apart: largest logit difference on real prompts between the base and the edited weights
            with the adapter: what rounding has lost, and what is left out. None where the model
            is not loaded.
        edited_apart: the same between the base and the edited weights without it.
    """

    folder: Path
    left_out: tuple[LeftOut, ...]
    apart: float | None
    edited_apart: float | None


def undo(out: Path, runtime: Runtime) -> Undone:
    """Write `out/undo`, which on `out/merged` gives the base, and measure how exactly.

    Raises:
        EditError: there is no merged model, or its head was changed with a tied embedding.
        SourceError: the source has changed since `extract`; the way back starts from it.
    """
    record = load_record(out)
    if record.merged is None or not (out / MERGED).is_dir():
        refused = record.refused.get(MERGED)
        raise EditError(
            f"{out} holds no merged model",
            why=refused or "",
            next_step="Switch the delta off" if refused else f"Run `abl-hub apply {out}`",
        )
    source = recorded_source(record, runtime)
    blueprint = meta_model(source.folder, trust_remote_code=runtime.trust_remote_code)
    trace = trace_writers(blueprint)
    tensors = CheckpointTensors(
        blueprint, open_shards(source.folder).tensors, read_json(source.folder, CONFIG)
    )
    direction = recorded_direction(record, out)
    shutil.rmtree(out / UNDO, ignore_errors=True)
    if record.recipe.induce:
        delta = write_added_delta(
            recorded_addition(record.recipe, direction, blueprint, trace),
            out / UNDO,
            model=meta_model(out / MERGED, trust_remote_code=runtime.trust_remote_code),
            base=str(out / MERGED),
            invert=True,
        )
    else:
        edit = recorded_edit(record, direction, trace)
        if MergedFiles(
            edit, source.folder, model=blueprint, untie=record.recipe.untie
        ).plan.changes_head:
            raise EditError(
                "No delta takes these weights back to the base",
                why="the embedding stayed tied, so its edit changed the output head too",
                next_step="Convert again without --no-untie",
            )
        delta = write_delta(
            edit,
            out / UNDO,
            model=blueprint,
            read=tensors.read_parameter,
            product=products_of_checkpoint(tensors),
            gains=gains_from_tensors(blueprint, trace.writers, tensors.read_parameter),
            base=str(out / MERGED),
            profile="complete",
            invert=True,
            progress=runtime.progress,
        )
    undone = Undone(
        folder=delta.folder,
        left_out=delta.left_out,
        apart=None,
        edited_apart=None,
    )
    unloaded = why_not_loaded(blueprint, record.recipe, runtime)
    if unloaded is not None:
        runtime.progress.note(f"{unloaded}: how near it comes to the base is not measured.")
        return undone
    asked = recorded_prompts(record, runtime).contrast.positive.validation[:_PROMPTS]

    def load(folder: Path) -> ChatModel:
        return load_chat_model(
            folder,
            dtype=dtype_named(record.recipe.dtype),
            device=runtime.device,
            trust_remote_code=runtime.trust_remote_code,
        )

    base = next_token_logits(load(source.folder), asked)
    chat = load(out / MERGED)
    edited = next_token_logits(chat, asked)
    with quiet_about_biases():
        wrapped = PeftModel.from_pretrained(chat.model, str(out / UNDO))
    back = next_token_logits(ChatModel(model=wrapped, tokenizer=chat.tokenizer), asked)
    return replace(undone, apart=apart(base, back), edited_apart=apart(base, edited))
