"""One stored weight, edited: rows read from the source, changed, rounded, written to the copy.

W ← W − Σᵢ uᵢ (vᵢ · W) along the stream's axis, in chunks of bounded size, so that memory does not
grow with the model. Reads and writes go through file positions and not through a writable map:
on a full disk a map ends the process with SIGBUS, where a write raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

import torch

from abl_hub.edits.edit import Factors
from abl_hub.edits.matrix import Matrix, Rows
from abl_hub.edits.rounding import by_weight, cancel
from abl_hub.errors import EditError

CHUNK_NUMBERS = 1 << 18
"""Numbers in flight: 1 MiB in float32, which stays in a core's cache through all passes and in the
allocator's hands between them."""
CANCELLING_CHUNK_NUMBERS = 1 << 22
_MOST_LOST = 0.01
"""Of what was along the directions."""
_ROUNDED = 1 + 1e-6
_MOST_SWEEPS = 16
"""As many as E2M1 has steps; that it does not help is seen after a few, and is rare."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the calling thread alone.

    Chunks are too small to share: on a busy machine, threads of torch that wait for each other
    made a merge ten times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rewrite(
    rows: Rows, factors: Factors, source: FileIO, target: FileIO, *, cancelling: bool
) -> None:
    """Write the edited weight into `target`, at the place where it lies in `source`.

    Args:
        cancelling: round so that the direction stays gone (`rounding.cancel`), not to nearest.
            Weights in float32 or finer are rounded to nearest in any case.

    Raises:
        EditError: the weight holds NaN or infinity, or the edit leaves the range of its dtype.
    """
    cancelling = cancelling and rows.matrix.format is not None
    edit = _edit_columns if rows.along_columns else _edit_rows
    with one_thread():
        for block in rows.all_blocks:
            edit(rows, block, factors, source, target, cancelling)


def contract(rows: Rows, read: torch.Tensor, source: FileIO) -> torch.Tensor:
    """read · W along the stream's axis, W taken as it is stored.

    Args:
        read: (k, n) float64.

    Returns:
        (k, *the weight's shape without the stream's axis), float64.

    Raises:
        EditError: the weight holds NaN or infinity.
    """
    along = read.to(rows.matrix.accumulation)
    one_block = _along_columns if rows.along_columns else _along_rows
    with one_thread():
        found = [one_block(rows, block, along, source) for block in rows.all_blocks]
    product = torch.stack(found, dim=1).double()
    _check_finite(product, rows.matrix)
    shape = list(rows.matrix.shape)
    del shape[rows.axis]
    return product.reshape(len(read), *shape)


def squared_norm(rows: Rows, source: FileIO) -> float:
    """Sum of the squares of all numbers of the weight."""
    with one_thread():
        return sum(
            float(rows.decode(raw, block, row).double().square().sum())
            for block in rows.all_blocks
            for row, raw in _chunks(rows, block, source)
        )


def _edit_columns(
    rows: Rows, block: int, factors: Factors, source: FileIO, target: FileIO, cancelling: bool
) -> None:
    """Each row is a stream vector (embeddings, biases, Conv1D)."""
    read, remove = _in(rows.matrix.accumulation, factors)
    # Cancelling goes entry by entry over all vectors of a chunk at once: fewer and larger steps.
    size = CANCELLING_CHUNK_NUMBERS if cancelling else CHUNK_NUMBERS
    for row, raw in _chunks(rows, block, source, size):
        numbers = rows.decode(raw, block, row)
        found = numbers @ read.T
        _check_finite(found, rows.matrix)
        numbers.addmm_(found, remove, alpha=-1)
        lost = _cut_off(rows, numbers, block, row) @ read.T
        rounded = _encode(rows, numbers, block, row)
        if cancelling:
            left = factors.read @ rows.decode(rounded, block, row).double().T
            left -= _wanted(factors, found.T.double())
            heavy, light = by_weight(factors.read)
            for _ in _sweeps(found, left):
                rounded = _cancel_columns(rows, block, row, rounded, factors.read, left, heavy)
            rounded = _cancel_columns(rows, block, row, rounded, factors.read, left, light)
            _check_range(rows, found, lost, left)
        rows.write(target, block, row, rounded)


def _edit_rows(
    rows: Rows, block: int, factors: Factors, source: FileIO, target: FileIO, cancelling: bool
) -> None:
    """Each column is a stream vector (o_proj, down_proj): one pass to read off, one to change."""
    read, remove = _in(rows.matrix.accumulation, factors)
    found = _along_rows(rows, block, read, source)
    _check_finite(found, rows.matrix)
    left = -_wanted(factors, found.double())
    lost = torch.zeros_like(found)
    for row, raw in _chunks(rows, block, source):
        numbers = rows.decode(raw, block, row)
        part = slice(row, row + len(raw))
        numbers.addmm_(remove[:, part].T, found, alpha=-1)
        lost += read[:, part] @ _cut_off(rows, numbers, block, row)
        rounded = _encode(rows, numbers, block, row)
        rows.write(target, block, row, rounded)
        if cancelling:
            left += (read[:, part] @ rows.decode(rounded, block, row)).double()
    if cancelling:
        heavy, light = by_weight(factors.read)
        for _ in _sweeps(found, left):
            _cancel_rows(rows, block, target, factors.read, left, heavy)
        _cancel_rows(rows, block, target, factors.read, left, light)
        _check_range(rows, found, lost, left)


def _along_columns(rows: Rows, block: int, read: torch.Tensor, source: FileIO) -> torch.Tensor:
    """read @ Wᵀ of one block: (k, rows)."""
    parts = [read @ rows.decode(raw, block, row).T for row, raw in _chunks(rows, block, source)]
    return torch.cat(parts, dim=1)


def _along_rows(rows: Rows, block: int, read: torch.Tensor, source: FileIO) -> torch.Tensor:
    """read @ W of one block: (k, columns)."""
    found = read.new_zeros(len(read), rows.columns)
    for row, raw in _chunks(rows, block, source):
        found.addmm_(read[:, row : row + len(raw)], rows.decode(raw, block, row))
    return found


def _cancel_columns(
    rows: Rows,
    block: int,
    row: int,
    raw: torch.Tensor,
    read: torch.Tensor,
    left: torch.Tensor,
    order: torch.Tensor,
) -> torch.Tensor:
    number_format = rows.matrix.format
    assert number_format is not None
    ordinals = number_format.ordinals(raw)
    scales = rows.scales_of(block, torch.arange(row, row + len(raw)))
    moving = ordinals[:, order].T.contiguous()
    cancel(
        moving,
        None if scales is None else scales[:, order].T,
        number_format,
        read[:, order],
        left,
    )
    ordinals[:, order] = moving.T
    return number_format.pack(ordinals)


def _cancel_rows(
    rows: Rows,
    block: int,
    target: FileIO,
    read: torch.Tensor,
    left: torch.Tensor,
    order: torch.Tensor,
) -> None:
    number_format = rows.matrix.format
    assert number_format is not None
    count = max(1, CHUNK_NUMBERS // rows.columns)
    for first in range(0, len(order), count):
        chosen = order[first : first + count]
        raw = torch.cat([rows.read(target, block, int(row), 1) for row in chosen])
        ordinals = number_format.ordinals(raw)
        cancel(ordinals, rows.scales_of(block, chosen), number_format, read[:, chosen], left)
        for row, changed in zip(chosen, number_format.pack(ordinals), strict=True):
            rows.write(target, block, int(row), changed)


def _wanted(factors: Factors, found: torch.Tensor) -> torch.Tensor:
    """What an exact edit leaves along the directions of `found` = v · W: (I − v uᵀ) v · W."""
    return found - (factors.read @ factors.remove.T) @ found


def _cut_off(rows: Rows, numbers: torch.Tensor, block: int, row: int) -> torch.Tensor:
    """What of edited numbers (rows, columns) lies beyond the largest code of a quantised weight."""
    number_format = rows.matrix.format
    scales = rows.scales_of(block, torch.arange(row, row + len(numbers)))
    if number_format is None or scales is None:
        return torch.zeros_like(numbers)
    largest = scales * float(number_format.values(torch.tensor(number_format.largest)))
    return numbers.sign() * (numbers.abs() - _ROUNDED * largest).clamp_min(0)


def _sweeps(found: torch.Tensor, left: torch.Tensor) -> Iterator[int]:
    """Once; then, while there is more left than may be, again: each sweep moves an entry by one
    step at most, and a direction of few entries may need several steps of each.

    Args:
        left: as cancelling has changed it, when the next sweep is asked for.
    """
    for sweep in range(_MOST_SWEEPS):
        yield sweep
        if float(left.norm()) <= _MOST_LOST * float(found.norm()):
            return


def _check_range(rows: Rows, found: torch.Tensor, lost: torch.Tensor, left: torch.Tensor) -> None:
    """Refuse an edit that the range of the codes cuts off, and cancelling could not make up for.

    Args:
        found: what was there along the directions.
        lost: what is cut off along them.
        left: what is there too much or too little after cancelling.
    """
    if min(float(lost.norm()), float(left.norm())) > _MOST_LOST * float(found.norm()):
        raise EditError(
            f"The edit takes {rows.matrix.key} out of the range of its "
            f"{rows.matrix.codes.dtype} codes",
            next_step="Use a smaller strength, or the full-precision base",
        )


def _encode(rows: Rows, numbers: torch.Tensor, block: int, row: int) -> torch.Tensor:
    dtype = rows.matrix.codes.torch_dtype
    # Of the plain formats only float16 is narrow enough for an edit to leave.
    if dtype == torch.float16 and float(numbers.abs().max()) > torch.finfo(dtype).max:
        raise EditError(
            f"The edit takes {rows.matrix.key} out of the range of float16",
            next_step="Use a smaller strength",
        )
    return rows.encode(numbers, block, row)


def _chunks(
    rows: Rows, block: int, source: FileIO, numbers: int = CHUNK_NUMBERS
) -> Iterator[tuple[int, torch.Tensor]]:
    count = max(1, numbers // rows.columns)
    for row in range(0, rows.rows, count):
        yield row, rows.read(source, block, row, min(count, rows.rows - row))


def _in(dtype: torch.dtype, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    return factors.read.to(dtype), factors.remove.to(dtype)


def _check_finite(found: torch.Tensor, matrix: Matrix) -> None:
    """NaN and infinity spread into every product, also into one with zero."""
    if not bool(torch.isfinite(found).all()):
        raise EditError(
            f"{matrix.key} holds NaN or infinity",
            why="its product with the direction is not finite",
            next_step="Download the model again, or report it to its authors",
        )
