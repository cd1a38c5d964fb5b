"""Quantised checkpoints: which can be edited where they lie, and how their scales are stored.

FP8 (E4M3 codes, one scale for each block of `weight_scale_inv`, as DeepSeek-V3 stores it) and
MXFP4 (E2M1 codes in `_blocks`, an E8M0 exponent for 32 of them in `_scales`, as gpt-oss stores it)
keep their scales and get new codes. Every other method is refused: it packs numbers so that an
edited weight needs new scales, calibration, or both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import torch
from transformers import FineGrainedFP8Config, PreTrainedModel
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from abl_hub.edits.safetensors_file import StoredTensor
from abl_hub.errors import EditError

Method = Literal["fp8", "mxfp4"]
Block = tuple[int, int]
"""Rows and columns of a stored weight that share a scale."""

FULL_PRECISION = "Give the full-precision base model that these weights were quantised from"

_SCALE_INV = "_scale_inv"
_BLOCKS, _SCALES = "_blocks", "_scales"
_EXPONENT_BIAS = 127
_NOT_A_NUMBER = 255  # of E8M0
_MXFP4_BLOCK: Block = (1, 32)


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What a config.json declares."""

    method: Method
    block: Block | None
    """None: one scale for the whole weight."""
    kept: list[str] | None = None
    """Modules that stay in full precision, as transformers names them."""


class Part(Enum):
    """What a tensor of a checkpoint is to a weight."""

    WHOLE = "whole"
    BLOCKS = "blocks"
    SCALES = "scales"


def declared(config: Mapping[str, object]) -> Quantisation | None:
    """The quantisation of a checkpoint; None for full precision.

    Raises:
        EditError: a method that cannot be edited in place.
    """
    for part in (config, config.get("text_config")):
        entry = part.get("quantization_config") if isinstance(part, Mapping) else None
        if entry is None:
            continue
        options = entry if isinstance(entry, Mapping) else {}
        name, kept = options.get("quant_method"), options.get("modules_to_not_convert")
        kept = [str(module) for module in kept] if isinstance(kept, list) else None
        if name == "mxfp4":
            return Quantisation(method="mxfp4", block=_MXFP4_BLOCK, kept=kept)
        if name == "fp8":
            match options.get("weight_block_size"):
                case None:
                    return Quantisation(method="fp8", block=None, kept=kept)
                case [int(rows), int(columns)] if rows > 0 and columns > 0:
                    return Quantisation(method="fp8", block=(rows, columns), kept=kept)
        shown = name or ("bitsandbytes" if "load_in_4bit" in options else "an unknown method")
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


def read_scales(
    stored: StoredTensor, block: Block | None, matrices: int, rows: int, columns: int
) -> torch.Tensor:
    """Scales as they are stored, (matrices, scale rows, scale columns); see `scale_values`.

    Args:
        block: rows and columns that share a scale; None where the whole matrix does.

    Raises:
        EditError: the scales do not tile the weight, or one is not a finite number.
    """
    scales = stored.read()
    height, width = block or (rows, columns)
    grid = (matrices, -(-rows // height), -(-columns // width))
    if scales.numel() != math.prod(grid) or (block and tuple(scales.shape[-2:]) != grid[1:]):
        raise EditError(
            f"{stored.key} does not fit its weight",
            why=f"its shape is {tuple(scales.shape)} for blocks of {height} × {width} "
            f"in {rows} × {columns}",
        )
    finite = scales.ne(_NOT_A_NUMBER) if stored.dtype == "U8" else scales.float().isfinite()
    if not bool(finite.all()):
        raise EditError(f"{stored.key} holds NaN or infinity")
    return scales.reshape(grid)


def scale_values(stored: torch.Tensor) -> torch.Tensor:
    """What codes are multiplied by, float32. Four times as large as stored exponents, or more."""
    if stored.dtype == torch.uint8:
        return (stored.float() - _EXPONENT_BIAS).exp2()
    return stored.float()


def stored_as(
    model: PreTrainedModel, quantisation: Quantisation | None
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Key → dtype and shape of what a checkpoint of `model` would hold, one tensor a parameter.

    transformers says which weights are FP8; of gpt-oss the experts are MXFP4.

    Args:
        model: on the meta device; it stays as it is.
    """
    if quantisation is not None and quantisation.method == "fp8":
        model = deepcopy(model)
        options: Any = FineGrainedFP8Config(modules_to_not_convert=quantisation.kept)
        options.weight_block_size = quantisation.block
        with torch.device("meta"):
            FineGrainedFP8HfQuantizer(options, pre_quantized=True).preprocess_model(model)
    stored = {
        name: (parameter.dtype, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
    }
    if quantisation is not None and quantisation.method == "mxfp4":
        packed = [
            name
            for name, (_, shape) in stored.items()
            if len(shape) == 3 and should_convert_module(name, quantisation.kept)
        ]
        for name in packed:
            experts, columns, rows = stored.pop(name)[1]
            groups = (experts, rows, columns // _MXFP4_BLOCK[1])
            stored[name + _BLOCKS] = (torch.uint8, (*groups, _MXFP4_BLOCK[1] // 2))
            stored[name + _SCALES] = (torch.uint8, groups)
    return stored
