"""Quantised checkpoints: which can be edited where they lie, and how their scales are stored.

FP8 (E4M3 codes, one scale for each block of `weight_scale_inv`, as DeepSeek-V3 stores it) and
MXFP4 (E2M1 codes in `_blocks`, an E8M0 exponent for 32 of them in `_scales`, as gpt-oss stores it)
keep their scales and get new codes. Every other method is refused: it packs numbers so that an
edited weight needs new scales, calibration, or both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Literal

import torch

from abl_hub.edits.safetensors_file import StoredTensor
from abl_hub.errors import EditError

Method = Literal["fp8", "mxfp4"]

FULL_PRECISION = "Give the full-precision base model that these weights were quantised from"

_SCALE_INV = "_scale_inv"
_BLOCKS, _SCALES = "_blocks", "_scales"
_EXPONENT_BIAS = 127


class Part(Enum):
    """What a tensor of a checkpoint is to a weight."""

    WHOLE = "whole"
    BLOCKS = "blocks"
    SCALES = "scales"


def method(config: Mapping[str, object]) -> Method | None:
    """The quantisation that a config.json declares; None for full precision.

    Raises:
        EditError: a method that cannot be edited in place.
    """
    for part in (config, config.get("text_config")):
        declared = part.get("quantization_config") if isinstance(part, Mapping) else None
        if declared is None:
            continue
        name = declared.get("quant_method") if isinstance(declared, Mapping) else None
        if name == "fp8":
            return "fp8"
        if name == "mxfp4":
            return "mxfp4"
        shown = name or ("bitsandbytes" if "load_in_4bit" in str(declared) else "an unknown method")
        raise EditError(
            f"Weights quantised with {shown} cannot be edited",
            why="an edited weight would need new scales",
            next_step=FULL_PRECISION,
        )
    return None


def split_key(key: str, method: Method | None) -> tuple[str, Part]:
    """A checkpoint key → the weight's own key, and what the tensor is to it."""
    if method == "fp8" and key.endswith(_SCALE_INV):
        return key.removesuffix(_SCALE_INV), Part.SCALES
    if method == "mxfp4" and key.endswith(_SCALES):
        return key.removesuffix(_SCALES), Part.SCALES
    if method == "mxfp4" and key.endswith(_BLOCKS):
        return key.removesuffix(_BLOCKS), Part.BLOCKS
    return key, Part.WHOLE


def scales_key(key: str, method: Method) -> str:
    """Where the scales of the weight `key` are stored, if it has any."""
    return key + (_SCALE_INV if method == "fp8" else _SCALES)


def read_scales(stored: StoredTensor, blocks: int, rows: int, columns: int) -> torch.Tensor:
    """What codes are multiplied by: (blocks, scale rows, scale columns) float32.

    Raises:
        EditError: the scales do not tile the weight, or one is not a finite number.
    """
    raw = stored.read()
    scales = (raw.float() - _EXPONENT_BIAS).exp2() if stored.dtype == "U8" else raw.float()
    grid = (1, 1) if scales.numel() == blocks else tuple(scales.shape[-2:])
    if scales.numel() != blocks * math.prod(grid):
        raise EditError(f"{stored.key} does not fit its weight of {rows} × {columns}")
    for count, length in zip(grid, (rows, columns), strict=True):
        if count < 1 or -(-length // -(-length // count)) != count:
            raise EditError(f"{stored.key} does not fit its weight of {rows} × {columns}")
    if not bool(torch.isfinite(scales).all()):
        raise EditError(f"{stored.key} holds NaN or infinity")
    return scales.reshape(blocks, *grid)
