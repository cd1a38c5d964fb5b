"""The numeric check of a written checkpoint, on its tensors: for models that do not fit in memory.

Where the model can be loaded, `abl_hub.model.check` measures the stream itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from abl_hub.edits.edit import Edit
from abl_hub.edits.keys import CheckpointTensors, Place
from abl_hub.edits.matrix import Matrix
from abl_hub.edits.merged_files import edit_factors, share_along
from abl_hub.edits.shards import CONFIG, open_shards, read_json
from abl_hub.errors import EditError
from abl_hub.model.check import residual_limit


def checkpoint_residual(edit: Edit, folder: Path, *, model: PreTrainedModel) -> float:
    """The largest share of a writer along the directions: max ‖v · W‖ / (‖v‖ ‖W‖) over the writers.

    A random direction holds about 1 / √width of a weight. Writers whose strength is not 1 are left
    out: something has to stay of those.

    Args:
        folder: an edited checkpoint; bounded memory, only the writers' tensors are read.
        model: its architecture, on the meta device.

    Raises:
        SourceError: a checkpoint that is damaged, or not of this model.
        EditError: a weight that holds NaN or infinity.
    """
    return max((share for _, share in _shares(edit, folder, model)), default=0.0)


def check_checkpoint(edit: Edit, folder: Path, *, model: PreTrainedModel) -> float:
    """`checkpoint_residual`, where nothing but rounding may be left.

    Raises:
        EditError: more lies along the directions than rounding can leave: 1e-5 of a weight in
            float32, 2e-3 in 16 bits, of a quantised one a quarter of what a random direction holds.
        SourceError: as `checkpoint_residual`.
    """
    worst = 0.0
    for place, left in _shares(edit, folder, model):
        limit = _limit(place.matrix, edit.directions.shape[1])
        if not left <= limit:
            raise EditError(
                "The edited weights fail their own check",
                why=f"{left:.1e} of {place.matrix.key} still lies along the direction "
                f"(limit {limit:.0e})",
                next_step="Nothing was written; report the architecture",
            )
        worst = max(worst, left)
    return worst


def _shares(edit: Edit, folder: Path, model: PreTrainedModel) -> Iterator[tuple[Place, float]]:
    tensors = CheckpointTensors(model, open_shards(folder).tensors, read_json(folder, CONFIG))
    factors = edit_factors(edit, model, tensors)
    for writer, strength in zip(edit.writers, edit.strengths, strict=True):
        if strength != 1:
            continue
        # A head that was untied has the unedited matrix, under a name of its own.
        own = tensors.places_under(writer, writer.parameter)
        for place in own or tensors.places(writer):
            change = factors[writer.parameter]
            yield place, share_along(place, change, place.matrix.codes.file)


def _limit(matrix: Matrix, width: int) -> float:
    if matrix.scales is not None:
        return 0.25 / math.sqrt(width)
    return residual_limit(torch.float32 if matrix.format is None else torch.bfloat16)
