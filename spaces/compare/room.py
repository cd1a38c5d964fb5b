"""Whether a model fits into memory, before a byte of its weights is read.

Knows the sizes of files and of memory; builds no model.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch
from huggingface_hub import HfApi

GB = 1e9
_BESIDE = 1.15  # weights, and a little for activations and the key-value cache


class DoesNotFitError(Exception):
    """The model needs more memory than there is; the text is for whoever asked for it."""


def weight_bytes(model: str, revision: str | None) -> int:
    """Bytes of safetensors of a folder or a Hub repository."""
    if Path(model).is_dir():
        return sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    found = HfApi().model_info(model, revision=revision, files_metadata=True).siblings or []
    return sum(file.size or 0 for file in found if file.rfilename.endswith(".safetensors"))


def free_bytes(device: str) -> int:
    """Bytes that a model on `device` could take now."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = [psutil.virtual_memory().available]
    # A container is stopped at its own limit, not at the machine's.
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        free.append(int(text) - int(used.read_text()))
    return max(min(free), 0)


def check(model: str, revision: str | None, *, device: str, copies: int = 1) -> None:
    """Refuse a model whose weights, `copies` times, do not fit.

    Raises:
        DoesNotFitError: with both numbers and what to do.
    """
    if device == "cuda" and os.environ.get("SPACES_ZERO_GPU"):
        device = "cpu"  # the GPU is lent by the call; until then the weights wait in host memory
    needed = weight_bytes(model, revision) * copies * _BESIDE
    free = free_bytes(device)
    if needed > free:
        place = "the GPU" if device == "cuda" else "this machine"
        raise DoesNotFitError(
            f"{model} needs about {needed / GB:.1f} GB of memory and {place} has "
            f"{free / GB:.1f} GB free. Choose larger hardware, or a smaller model."
        )
