"""The merged form of an `Addition`: a copy of a checkpoint in which one bias is another.

Where the architecture has the bias, its bytes change and nothing else. Where a switch of the
configuration grows one, the switch is turned in the copy and a small shard holds the new biases,
all zero but that one.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from abl_hub.edits.addition import Addition
from abl_hub.edits.carrying import GrownBias
from abl_hub.edits.checkpoint import Merged, written_file
from abl_hub.edits.companions import companions, json_text
from abl_hub.edits.keys import CheckpointTensors
from abl_hub.edits.merged_files import text_config_name
from abl_hub.edits.safetensors_file import DTYPES, StoredTensor
from abl_hub.edits.shards import (
    CONFIG,
    INDEX,
    SINGLE,
    Shards,
    open_shards,
    read_json,
    real_file,
)
from abl_hub.edits.staging import check_space, clone, staging
from abl_hub.errors import EditError, NoMergedFormError
from abl_hub.model.writers import Writer
from abl_hub.progress import SILENT, Progress

_NEW_SHARD = "model-added-bias.safetensors"
_ONLY_SHARD = "model-00001-of-00001.safetensors"


@dataclass(frozen=True, kw_only=True)
class AddedPlan:
    """How a checkpoint carries an addition: by a stored bias, or by one that is grown."""

    stored: StoredTensor | None
    grown: GrownBias | None


def plan_added(edit: Addition, source: Path, *, model: PreTrainedModel) -> AddedPlan:
    """Decide how the checkpoint in `source` can carry `edit`.

    Raises:
        NoMergedFormError: the architecture has no bias there, and no switch that gives it one.
        SourceError: a checkpoint that is damaged, or not of this model.
    """
    if edit.place.has_bias:
        writer = Writer(parameter=edit.place.bias, axis=0, shape=(len(edit.constant),))
        [place] = _tensors(source, model, open_shards(source)).places(writer)
        return AddedPlan(stored=place.matrix.codes, grown=None)
    if edit.place.grown is None:
        raise NoMergedFormError(
            f"No checkpoint of {model.config.model_type} can hold the addition",
            why=f"{edit.place.module} has no bias, and nothing in the configuration gives it one",
            next_step="Use the delta",
        )
    return AddedPlan(stored=None, grown=edit.place.grown)


def write_added(
    edit: Addition,
    source: Path,
    out: Path,
    *,
    model: PreTrainedModel,
    plan: AddedPlan,
    progress: Progress = SILENT,
) -> Merged:
    """Write the checkpoint in `source` with `edit` as the new folder `out`.

    Args:
        model: the architecture of `source`, on the meta device.

    Raises:
        SourceError: a checkpoint that is damaged, or not of this model.
        EditError: the bias holds NaN or infinity.
        OutputError: `out` is taken, or the disk is full.
    """
    shards = open_shards(source)
    tensors = _tensors(source, model, shards)
    config = read_json(source, CONFIG)
    renamed = plan.grown is not None and shards.index is None
    names = {name: _ONLY_SHARD if renamed else name for name in shards.names}
    with staging(out) as stage, progress.stage("Writing the checkpoint", shards.size_bytes) as done:
        check_space(out, shards.size_bytes)
        written = []
        for name, target in names.items():
            _copy(shards.files[name], stage.folder / target)
            if plan.stored is not None and plan.stored.file == shards.files[name]:
                _add_in_place(edit, plan.stored, stage.folder / target)
            written.append(target)
            done((stage.folder / target).stat().st_size)
        index = shards.index
        if plan.grown is not None:
            new = _new_biases(edit, plan.grown, tensors, model)
            (stage.folder / _NEW_SHARD).write_bytes(save(new, metadata={"format": "pt"}))
            written.append(_NEW_SHARD)
            index = _index(shards, names, new)
            config = _switched_on(config, plan.grown.field, text_config_name(model))
            (stage.folder / CONFIG).write_text(json_text(config), encoding="utf-8")
        else:
            _copy(real_file(source, CONFIG), stage.folder / CONFIG)
        if index is not None:
            (stage.folder / INDEX).write_text(json_text(index), encoding="utf-8")
            written.append(INDEX)
        for name in companions(source):
            (stage.folder / name).parent.mkdir(exist_ok=True)
            _copy(real_file(source, name), stage.folder / name)
            written.append(name)
        files = [written_file(stage.folder, name) for name in (*written, CONFIG)]
        folder = stage.publish()
    edited = plan.stored.key if plan.stored else _key(edit.place.bias, tensors, model)
    return Merged(
        folder=folder,
        files=tuple(sorted(files, key=lambda file: file.path)),
        edited_keys=(edited,),
        left_alone_keys=tensors.unmapped_keys,
        untied=False,
        changes_head=False,
        rounding="nearest",
    )


def _tensors(source: Path, model: PreTrainedModel, shards: Shards) -> CheckpointTensors:
    return CheckpointTensors(model, shards.tensors, read_json(source, CONFIG))


def _add_in_place(edit: Addition, stored: StoredTensor, file: Path) -> None:
    dtype = DTYPES[stored.dtype]
    with file.open("r+b") as opened:
        opened.seek(stored.start)
        before = torch.frombuffer(bytearray(opened.read(stored.size_bytes)), dtype=dtype)
        after = (before.double() + edit.constant).to(dtype)
        _finite(stored.key, after)
        opened.seek(stored.start)
        opened.write(after.view(torch.uint8).numpy().tobytes())


def _finite(name: str, bias: torch.Tensor) -> torch.Tensor:
    """`bias`, unless it holds NaN or infinity."""
    if not bool(torch.isfinite(bias).all()):
        raise EditError(
            f"{name} with the addition is not finite",
            why=f"it leaves the range of {str(bias.dtype).removeprefix('torch.')}",
            next_step="Use a smaller strength",
        )
    return bias


def _new_biases(
    edit: Addition, grown: GrownBias, tensors: CheckpointTensors, model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """Checkpoint key → bias, in the model's own dtype."""
    found = {}
    for name, shape in grown.parameters.items():
        value = edit.constant if name == edit.place.bias else torch.zeros(shape)
        found[_key(name, tensors, model)] = _finite(name, value.to(model.dtype)).contiguous()
    return found


def _key(bias: str, tensors: CheckpointTensors, model: PreTrainedModel) -> str:
    """The checkpoint's key of a bias that it does not hold: beside that of the weight."""
    weight = f"{bias.removesuffix('.bias')}.weight"
    shape = tuple(model.get_parameter(weight).shape)
    place = tensors.places(Writer(parameter=weight, axis=0, shape=shape))[0]
    return f"{place.matrix.key.removesuffix('.weight')}.bias"


def _index(shards: Shards, names: dict[str, str], new: dict[str, torch.Tensor]) -> dict[str, Any]:
    index = shards.index or {
        "metadata": {"total_size": sum(t.size_bytes for t in shards.tensors.values())},
        "weight_map": dict.fromkeys(sorted(shards.tensors), SINGLE),
    }
    weight_map = {key: names[name] for key, name in index["weight_map"].items()}
    weight_map |= dict.fromkeys(new, _NEW_SHARD)
    metadata = dict(index.get("metadata") or {})
    for name, added in (
        ("total_size", sum(bias.numel() * bias.element_size() for bias in new.values())),
        ("total_parameters", sum(math.prod(bias.shape) for bias in new.values())),
    ):
        if isinstance(metadata.get(name), int):
            metadata[name] += added
    return {**index, "metadata": metadata, "weight_map": weight_map}


def _switched_on(config: dict[str, Any], field: str, text_config: str | None) -> dict[str, Any]:
    if text_config is None:
        return {**config, field: True}
    return {**config, text_config: {**(config.get(text_config) or {}), field: True}}


def _copy(source: Path, target: Path) -> None:
    if not clone(source, target):
        shutil.copyfile(source, target)
