"""What writing an edited checkpoint will do, known from its config and headers alone.

Which tensors of which shard change, which are no parameter of the model and stay, what becomes of
a tied embedding, and how many bytes are read, written and held. Reads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import PreTrainedModel

from abl_hub.edits.keys import CheckpointTensors, Place
from abl_hub.edits.matrix import Matrix
from abl_hub.edits.quantised import declared, stored_as
from abl_hub.edits.rewrite import CANCELLING_CHUNK_NUMBERS, CHUNK_NUMBERS
from abl_hub.edits.safetensors_file import DTYPES, StoredTensor
from abl_hub.edits.shards import CONFIG, open_shards, read_json
from abl_hub.errors import NoMergedFormError
from abl_hub.model.writers import Writer

_IMPORTS_BYTES = 470 * 10**6
"""What Python holds with torch, transformers and PEFT imported and a model on the meta device."""
_AT_A_TIME = 2
_CANCELLING_BYTES = 24
"""For each number of a chunk: as stored, as float32 and as ordinals, and what is made of those."""


@dataclass(frozen=True, kw_only=True)
class UntiedHead:
    """The head of a model whose embedding is edited and was tied to it."""

    key: str
    """Checkpoint key under which the unedited matrix is stored for the head."""
    embedding: Matrix
    stored: bool
    """The checkpoint holds it already: it only stays unedited."""


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """What will change in a checkpoint."""

    places: tuple[Place, ...]
    left_alone_keys: tuple[str, ...]
    """Keys that are no parameter of the model: multi-token prediction, old buffers."""
    heads: tuple[UntiedHead, ...]
    changes_head: bool
    """A tied embedding is edited and stays tied, so the output head changes with it."""
    bytes_read: int
    """Of the writers' tensors: what a delta has to read."""
    bytes_written: int
    """Of the whole edited checkpoint's weights."""
    bytes_added: int
    """What of them the source does not have: a head that was tied."""
    memory_bytes: int
    """Peak that is expected, whatever the size of the model."""


def plan_checkpoint(
    folder: Path, model: PreTrainedModel, writers: Sequence[Writer], *, untie: bool = True
) -> CheckpointPlan:
    """Plan the edit of `writers` in the checkpoint in `folder`.

    Args:
        model: the architecture, on the meta device.
        untie: give the head its own, unedited matrix where it is tied to an edited embedding.

    Raises:
        SourceError: a checkpoint that is damaged, or not of this model.
        EditError: a checkpoint that cannot be edited where it lies.
    """
    tensors = CheckpointTensors(model, open_shards(folder).tensors, read_json(folder, CONFIG))
    return plan_tensors(tensors, model, writers, untie=untie)


def plan_model(
    model: PreTrainedModel,
    writers: Sequence[Writer],
    *,
    config: Mapping[str, object] = MappingProxyType({}),
    untie: bool = True,
    cancelling: bool = False,
) -> CheckpointPlan:
    """Plan from the architecture alone, as if each parameter were one tensor of its own dtype.

    Args:
        config: the checkpoint's config.json; quantised weights count as they are stored.
        cancelling: weights in 16 bits are rounded so, which takes more memory.

    Raises:
        EditError: a quantisation that cannot be edited.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    stored = {
        key: StoredTensor(
            key=key,
            file=Path("model.safetensors"),
            dtype=names[dtype],
            shape=shape,
            start=0,
            size_bytes=math.prod(shape) * dtype.itemsize,
        )
        for key, (dtype, shape) in stored_as(model, declared(config)).items()
    }
    tensors = CheckpointTensors(model, stored, config)
    return plan_tensors(tensors, model, writers, untie=untie, cancelling=cancelling)


def plan_tensors(
    tensors: CheckpointTensors,
    model: PreTrainedModel,
    writers: Sequence[Writer],
    *,
    untie: bool = True,
    cancelling: bool = False,
) -> CheckpointPlan:
    """Plan the edit of `writers` in a checkpoint whose tensors are known."""
    places: list[Place] = []
    heads: list[UntiedHead] = []
    changes_head = False
    head = _head_name(model)
    for writer in writers:
        names = tensors.names(writer.parameter)
        if head not in names or head == writer.parameter:
            places += tensors.places(writer)
        elif untie:
            own = [p for name in names if name != head for p in tensors.places_under(writer, name)]
            heads.append(_untied(tensors, writer, head, own))
            places += own
        else:
            changes_head = True
            places += tensors.places(writer)
    if heads:
        _refuse_other_ties(tensors, model, head)
    for place in places:
        _ = place.matrix.format  # refuses what is not stored as numbers that can be edited
    added = sum(head.embedding.codes.size_bytes for head in heads if not head.stored)
    return CheckpointPlan(
        places=tuple(places),
        left_alone_keys=tensors.unmapped_keys,
        heads=tuple(heads),
        changes_head=changes_head,
        bytes_read=sum(_bytes(place.matrix) for place in places),
        bytes_written=sum(_bytes(matrix) for matrix in tensors.matrices) + added,
        bytes_added=added,
        memory_bytes=_memory(places, cancelling),
    )


def _head_name(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for path, module in model.named_modules():
        if module is head and isinstance(getattr(module, "weight", None), torch.Tensor):
            return f"{path}.weight"
    return None


def _untied(
    tensors: CheckpointTensors, writer: Writer, head: str, own: Sequence[Place]
) -> UntiedHead:
    if not own or own[0].matrix.scales is not None:
        raise NoMergedFormError(
            f"{writer.parameter} cannot be untied from {head}",
            why="the checkpoint holds it only under the head's name, or quantised",
            next_step="Use the delta, or --no-untie, which changes the head too",
        )
    under_head = tensors.places_under(writer, head)
    return UntiedHead(
        key=under_head[0].matrix.key if under_head else tensors.key_for(head),
        embedding=own[0].matrix,
        stored=bool(under_head),
    )


def _refuse_other_ties(
    tensors: CheckpointTensors, model: PreTrainedModel, head: str | None
) -> None:
    """transformers has one switch for all ties: what else it ties would be read as random."""
    lost = [
        name for name in model.all_tied_weights_keys if name != head and not tensors.stores(name)
    ]
    if lost:
        raise NoMergedFormError(
            f"{head} cannot be untied from the embedding",
            why=f"the same switch ties {lost[0]}, which the checkpoint does not hold by itself",
            next_step="Use the delta, or --no-untie, which changes the head too",
        )


def _bytes(matrix: Matrix) -> int:
    return matrix.codes.size_bytes + (matrix.scales.size_bytes if matrix.scales else 0)


def _memory(places: Sequence[Place], cancelling: bool) -> int:
    """Imports; and for each of the weights that are written at a time a chunk in up to four
    float64 forms, columns read off, scales, and the larger chunk of cancelling."""
    columns = max((math.prod(p.matrix.shape[p.axis + 1 :]) for p in places), default=0)
    scales = max((p.matrix.scales.size_bytes for p in places if p.matrix.scales), default=0)
    rows = [math.prod(p.matrix.shape) for p in places if p.axis == len(p.matrix.shape) - 1]
    entries = min(max(rows, default=0), CANCELLING_CHUNK_NUMBERS) if cancelling else 0
    chunk = (8 * CHUNK_NUMBERS + 4 * columns) * torch.float64.itemsize
    return _IMPORTS_BYTES + _AT_A_TIME * (chunk + 2 * scales + _CANCELLING_BYTES * entries)


def by_file(places: Sequence[Place]) -> Mapping[Path, tuple[Place, ...]]:
    """The places in each shard, in the order of their bytes."""
    files: dict[Path, list[Place]] = {}
    for place in places:
        files.setdefault(place.matrix.codes.file, []).append(place)
    return {
        file: tuple(sorted(inside, key=lambda place: place.matrix.codes.start))
        for file, inside in files.items()
    }
