"""All that a delta needs of a large weight: its product with what is read off it.

From memory, or straight from a checkpoint's bytes in chunks, so that memory does not grow with
the weight. Knows nothing of PEFT.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from io import FileIO

import torch

from abl_hub.edits.keys import CheckpointTensors
from abl_hub.edits.matrix import Rows
from abl_hub.edits.rewrite import contract
from abl_hub.edits.safetensors_file import StoredTensor
from abl_hub.model.writers import Writer

Read = Callable[[str], torch.Tensor]
"""Parameter name in the module tree → its tensor, in the module's layout, any float dtype."""

Product = Callable[[Writer, torch.Tensor], torch.Tensor]
"""(writer, read (k, n)) → read · W along the writer's stream axis: (k, *the rest), float64."""

_BLOCK = 1 << 20
"""Numbers that are widened at once."""


def products_in_memory(read: Read) -> Product:
    """Products with whole tensors that `read` gives."""

    def product(writer: Writer, along: torch.Tensor) -> torch.Tensor:
        weight = read(writer.parameter)
        if weight.ndim == 3:
            found = [_product(along, matrix, writer.axis - 1) for matrix in weight]
            return torch.stack(found, dim=1)
        return _product(along, weight, writer.axis)

    return product


def products_of_checkpoint(tensors: CheckpointTensors) -> Product:
    """Products with the tensors of a checkpoint, which are never held whole.

    Raises (when called):
        SourceError: the checkpoint does not hold the writer.
        EditError: it is stored in a way that cannot be read off, or holds NaN or infinity.
    """

    def product(writer: Writer, along: torch.Tensor) -> torch.Tensor:
        stored = (tensors.places_under(writer, name) for name in tensors.names(writer.parameter))
        places = next((found for found in stored if found), ()) or tensors.places(writer)
        found = []
        for place in sorted(places, key=lambda place: place.expert or 0):
            with place.matrix.codes.file.open("rb", buffering=0) as file:
                _fetch_ahead(file, place.matrix.codes)
                found.append(contract(Rows.of(place.matrix, place.axis), along, file))
        return found[0] if places[0].expert is None else torch.stack(found, dim=1)

    return product


def _fetch_ahead(file: FileIO, codes: StoredTensor) -> None:
    """Let the disk bring all of a tensor while its beginning is multiplied, where a system can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), codes.start, codes.size_bytes, os.POSIX_FADV_WILLNEED)


def _product(along: torch.Tensor, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """along (k, n) · weight along `axis`: (k, other), float64; the weight is widened by blocks."""
    rows, columns = weight.shape
    step = max(1, _BLOCK // columns)
    result = torch.zeros(len(along), columns if axis == 0 else rows, dtype=torch.float64)
    for start in range(0, rows, step):
        block = weight[start : start + step].to("cpu", torch.float64)
        if axis == 0:
            result += along[:, start : start + step] @ block
        else:
            result[:, start : start + step] = along @ block.T
    return result
