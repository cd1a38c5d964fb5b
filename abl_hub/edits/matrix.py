"""Stored weights as numbers: bytes of rows in, floating-point rows out, and back.

A weight is one tensor of a shard, or two where it is quantised (codes and their scales). Knows how
numbers are stored; neither models nor edits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO

import torch

from abl_hub.edits import quantised
from abl_hub.edits.rounding import BF16, E2M1, E4M3, F16, Format
from abl_hub.edits.safetensors_file import StoredTensor, read_bytes, write_bytes
from abl_hub.errors import EditError

_FORMATS: dict[str, Format] = {"BF16": BF16, "F16": F16, "F8_E4M3": E4M3}
_EXACT = ("F32", "F64")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A weight as the checkpoint stores it.

    Args:
        key: its checkpoint key; of an MXFP4 weight, without `_blocks`.
        codes: the numbers, or the codes of a quantised weight.
        scales: what the codes are multiplied by; None where they are the numbers.
    """

    key: str
    codes: StoredTensor
    scales: StoredTensor | None = None
    scale_block: quantised.Block | None = None
    """Rows and columns that share a scale; None where there is none, or one."""

    @property
    def packed(self) -> bool:
        """MXFP4: two numbers a byte, and the model's axes 1 and 2 change places."""
        return self.scales is not None and self.codes.dtype == "U8"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers, as stored."""
        if self.packed:
            experts, rows, groups, group_bytes = self.codes.shape
            return (experts, rows, groups * group_bytes * 2)
        return self.codes.shape

    @property
    def in_model(self) -> tuple[int, ...]:
        """Shape of the parameter that it makes where transformers loads it unconverted."""
        if self.packed:
            experts, rows, columns = self.shape
            return (experts, columns, rows)
        return self.shape

    def axis_in_file(self, axis: int) -> int:
        """Axis of the unconverted parameter → axis of the stored numbers."""
        return {1: 2, 2: 1}.get(axis, axis) if self.packed else axis

    @property
    def format(self) -> Format | None:
        """None for float32 and float64.

        Raises:
            EditError: not stored as numbers that can be edited.
        """
        if self.packed:
            return E2M1
        if self.codes.dtype in _EXACT:
            return None
        if self.codes.dtype not in _FORMATS or (self.codes.dtype == "F8_E4M3") != bool(self.scales):
            raise EditError(
                f"{self.key} is stored as {self.codes.dtype}"
                + ("" if self.scales else " without block scales"),
                why="only float64, float32, float16, bfloat16, block-scaled FP8 and MXFP4 "
                "weights can be edited",
                next_step=quantised.FULL_PRECISION,
            )
        return _FORMATS[self.codes.dtype]

    @property
    def accumulation(self) -> torch.dtype:
        """The dtype that edits are computed in: float64 where the weights are float32 or finer."""
        return torch.float64 if self.format is None else torch.float32

    def read(self) -> torch.Tensor:
        """All numbers, `shape`: in their own dtype, or float32 where quantised."""
        if self.scales is None:
            return self.codes.read()
        rows = Rows.of(self, axis=len(self.shape) - 1)
        with self.codes.file.open("rb", buffering=0) as file:
            blocks = [rows.decode(rows.read(file, b, 0, rows.rows), b, 0) for b in rows.all_blocks]
        return torch.stack(blocks).reshape(self.shape)

    def read_for_model(self) -> torch.Tensor:
        """Like `read`, of shape `in_model`."""
        return self.read().transpose(1, 2).contiguous() if self.packed else self.read()


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A stored weight as `blocks` matrices of `rows` × `columns`, read and written by rows.

    The residual stream lies along the columns where it is the weight's last axis, else along the
    rows: rows are contiguous in the file, whichever they are.
    """

    matrix: Matrix
    axis: int
    """The residual stream's, in `matrix.shape`."""
    blocks: int
    rows: int
    columns: int
    along_columns: bool
    scales: torch.Tensor | None
    """(blocks, scale rows, scale columns), as stored: a model's largest weight has many."""

    @classmethod
    def of(cls, matrix: Matrix, axis: int) -> Rows:
        """Raises `EditError` for scales that do not fit, `SourceError` for unreadable ones."""
        shape = matrix.shape if len(matrix.shape) > 1 else (1, *matrix.shape)
        along_columns = axis == len(matrix.shape) - 1
        split = len(shape) - 2 if along_columns else axis
        if matrix.scales is not None and split != len(shape) - 2:
            raise EditError(f"{matrix.key} is quantised across the residual stream's axis")
        rows, columns = shape[split], math.prod(shape[split + 1 :])
        blocks = math.prod(shape[:split])
        scales = None
        if matrix.scales is not None:
            scales = quantised.read_scales(matrix.scales, matrix.scale_block, blocks, rows, columns)
        return cls(
            matrix=matrix,
            axis=axis,
            blocks=blocks,
            rows=rows,
            columns=columns,
            along_columns=along_columns,
            scales=scales,
        )

    @property
    def all_blocks(self) -> range:
        return range(self.blocks)

    @property
    def row_bytes(self) -> int:
        return self.columns // 2 if self.matrix.packed else self.columns * self.itemsize

    @property
    def itemsize(self) -> int:
        return self.matrix.codes.itemsize

    def read(self, file: FileIO, block: int, row: int, count: int) -> torch.Tensor:
        """(count, row_bytes) uint8."""
        start = self.matrix.codes.start + (block * self.rows + row) * self.row_bytes
        return read_bytes(file, start, count * self.row_bytes).view(count, self.row_bytes)

    def write(self, file: FileIO, block: int, row: int, raw: torch.Tensor) -> None:
        start = self.matrix.codes.start + (block * self.rows + row) * self.row_bytes
        write_bytes(file, start, raw)

    def decode(self, raw: torch.Tensor, block: int, row: int) -> torch.Tensor:
        """Bytes of rows from `row` on → numbers (count, columns), in `matrix.accumulation`."""
        if self.matrix.format is None:
            return raw.view(self.matrix.codes.torch_dtype).to(torch.float64)
        numbers = self.matrix.format.decode(raw)
        scales = self.scales_of(block, torch.arange(row, row + len(raw)))
        return numbers if scales is None else numbers.mul_(scales)

    def encode(self, numbers: torch.Tensor, block: int, row: int) -> torch.Tensor:
        """The inverse of `decode`, rounded to nearest; `numbers` may be overwritten."""
        if self.matrix.format is None:
            return numbers.to(self.matrix.codes.torch_dtype).view(torch.uint8)
        scales = self.scales_of(block, torch.arange(row, row + len(numbers)))
        if scales is not None:
            numbers = torch.where(scales == 0, 0.0, numbers / scales)
        return self.matrix.format.encode(numbers)

    def scales_of(self, block: int, rows: torch.Tensor) -> torch.Tensor | None:
        """(rows, columns) float32: what the codes of these rows are multiplied by."""
        if self.scales is None:
            return None
        scales = self.scales[block]
        height, width = self.matrix.scale_block or (self.rows, self.columns)
        values = quantised.scale_values(scales[rows // height])
        return values.repeat_interleave(width, dim=1)[:, : self.columns]


def matrices(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, object]
) -> dict[str, Matrix]:
    """All weights of a checkpoint by their key, each joined with its scales.

    Raises:
        EditError: a quantisation that cannot be edited in place.
    """
    quantisation = quantised.declared(config)
    method = quantisation.method if quantisation else None
    found: dict[str, Matrix] = {}
    for key, tensor in tensors.items():
        stem, suffix = quantised.split_key(key, method)
        if suffix is quantised.Part.SCALES:
            continue
        scales = tensors.get(quantised.scales_key(stem, method)) if method else None
        if suffix is quantised.Part.BLOCKS and scales is None:
            raise EditError(f"{key} has no scales beside it")
        block = quantisation.block if quantisation and scales else None
        found[stem] = Matrix(key=stem, codes=tensor, scales=scales, scale_block=block)
    return found
