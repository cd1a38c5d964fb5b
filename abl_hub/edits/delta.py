"""The delta form of an `Edit`: a PEFT adapter that holds it exactly, read back before it appears.

Reads the writers' tensors one at a time and never builds the model. Knows the arithmetic of the
factors; `abl_hub.edits.delta_layout` knows where PEFT wants them.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import save
from transformers import PreTrainedModel

from abl_hub.edits.checkpoint import WrittenFile
from abl_hub.edits.delta_layout import (
    Layout,
    LeftOut,
    Profile,
    complete,
    looks_portable,
    portable,
)
from abl_hub.edits.delta_products import Product, Read, products_in_memory
from abl_hub.edits.edit import Edit, Factors, Gains, factors
from abl_hub.edits.peft_skeleton import LowRank, quiet_about_ties, skeleton
from abl_hub.edits.rewrite import one_thread
from abl_hub.edits.staging import check_free, staging
from abl_hub.errors import EditError, NoDeltaError
from abl_hub.model.writers import Writer
from abl_hub.progress import SILENT, Progress

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_READERS = 2
"""Threads: while one waits for the disk, the other computes."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """An adapter on disk.

    Args:
        covered: writers that it edits; those of strength 0 are in neither list.
        left_out: writers that it does not edit although the edit does.
        notes: what the user must know about this form.
    """

    folder: Path
    profile: Profile
    files: tuple[WrittenFile, ...]
    covered: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    @property
    def faithful(self) -> bool:
        """Whether it holds the whole edit."""
        return not self.left_out


def write_delta(
    edit: Edit,
    out: Path,
    *,
    model: PreTrainedModel,
    read: Read,
    gains: Gains,
    base: str,
    revision: str | None = None,
    profile: Literal["auto", "portable", "complete"] = "auto",
    invert: bool = False,
    product: Product | None = None,
    progress: Progress = SILENT,
) -> Delta:
    """Write `edit` as a PEFT adapter of rank k and scale 1, in float32, into the folder `out`.

    Args:
        out: must not exist, or be empty; it appears whole or not at all.
        model: gives the module types; the meta device is enough.
        read: reads the *unedited* parameters, also with `invert`.
        product: gives their products where they are not to be read whole
            (`products_of_checkpoint`); `read` is then used for biases and norms alone.
        gains: effective gains of the norms between writers and stream.
        base: what the adapter is to be put on: a Hub id or a local path.
        revision: commit of `base`.
        profile: "portable" for every engine, "complete" for PEFT; "auto" is portable where that
            covers every writer that the edit changes.
        invert: write the way back: on the edited weights, the adapter gives the unedited model.

    Raises:
        NoDeltaError: no writer can be held.
        EditError: PEFT would not load the adapter as it was written.
        OutputError: `out` is taken.
    """
    check_free(out)
    layout = _choose(edit, model, profile)
    if not layout.low_rank:
        reasons = sorted({left.reason for left in layout.left_out})
        raise NoDeltaError("No adapter can hold this edit", why="; ".join(reasons))
    product = products_in_memory(read) if product is None else product
    with one_thread():
        tensors = _tensors(edit, layout, read, product, gains, 1.0 if invert else -1.0, progress)
    config = layout.config | {"base_model_name_or_path": base}
    if revision is not None:
        config["revision"] = revision
    with staging(out) as stage:
        (stage.folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (stage.folder / CONFIG).write_text(text, encoding="utf-8")
        check_delta(stage.folder, model)
        files = tuple(describe_file(stage.folder / name) for name in (CONFIG, WEIGHTS))
        stage.publish()
    return Delta(
        folder=out,
        profile=layout.profile,
        files=files,
        covered=layout.covered,
        left_out=layout.left_out,
        notes=(*layout.notes, *_omissions(layout)),
    )


def check_delta(folder: Path, model: PreTrainedModel) -> None:
    """Load the adapter as PEFT does, onto a skeleton of `model`, and compare the keys.

    PEFT drops what it cannot place without a word; here that is an error. The weights of `model`
    are neither read nor changed.

    Raises:
        EditError: a tensor of the file was not taken, a LoRA got none, or shapes differ.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        with quiet_about_ties():
            wrapped = PeftModel(skeleton(model), config, low_cpu_mem_usage=True)
        loaded = wrapped.load_adapter(
            str(folder), "default", torch_device="cpu", low_cpu_mem_usage=True
        )
    except (ValueError, RuntimeError, KeyError) as error:
        raise EditError("PEFT cannot load the adapter", why=str(error)) from error
    for keys, fate in (
        (loaded.unexpected_keys, "would drop"),
        (loaded.missing_keys, "finds nothing for"),
    ):
        if keys:
            raise EditError(
                f"PEFT {fate} {len(keys)} of the adapter's tensors",
                why=f"the first is {sorted(keys)[0]}",
                next_step="Use the merged form, and report the architecture",
            )


def _choose(edit: Edit, model: PreTrainedModel, profile: str) -> Layout:
    changed = [w for w, s in zip(edit.writers, edit.strengths, strict=True) if s != 0.0]
    if not changed:
        # Zeros wherever an edit could be: an adapter must change something to be one.
        layout = portable(model, edit.writers, edit.rank)
        layout = layout if layout.low_rank else complete(model, edit.writers, edit.rank)
        return replace(layout, covered=(), left_out=(), notes=())
    if profile == "portable" or (profile == "auto" and looks_portable(model, changed)):
        layout = portable(model, changed, edit.rank)
        if profile == "portable" or not layout.left_out:
            return layout
    return complete(model, changed, edit.rank)


def _tensors(
    edit: Edit,
    layout: Layout,
    read: Read,
    product: Product,
    gains: Gains,
    sign: float,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Everything that the adapter file holds, in float32.

    Args:
        sign: of the change: −1 removes, +1 gives back.
    """
    changes: dict[str, tuple[Writer, Factors]] = {
        writer.parameter: (writer, factors(edit, writer, strength, gains))
        for writer, strength in zip(edit.writers, edit.strengths, strict=True)
        if strength != 0.0
    }

    def held(place: LowRank) -> dict[str, torch.Tensor]:
        if place.parameter in changes:
            writer, change = changes[place.parameter]
            a, b = _factors_of(place, writer, change, product, sign)
        else:
            a, b = _zeros(place, edit.rank)
        if place.bias is None:
            return {place.a: a, place.b: b}
        name = place.parameter.rpartition(".")[0] + ".bias"
        bias = torch.zeros(place.shape[place.out_axis])
        if name in changes:
            bias = sign * _taken(changes[name][1], read(name))
        return {place.a: a, place.b: b, place.bias: bias}

    tensors: dict[str, torch.Tensor] = {}
    with (
        progress.stage("Writing the delta", len(layout.low_rank) + len(layout.whole)) as advance,
        ThreadPoolExecutor(_READERS) as readers,
    ):
        for found in readers.map(held, layout.low_rank):
            tensors |= found
            advance(1)
        for kept in layout.whole:
            tensor = read(kept.parameter).to(torch.float64)
            if kept.parameter in changes and sign < 0:
                tensor = tensor - _taken(changes[kept.parameter][1], tensor)
            tensors[kept.key] = tensor
            advance(1)
    return {key: tensor.to(torch.float32).contiguous() for key, tensor in tensors.items()}


def _taken(change: Factors, vector: torch.Tensor) -> torch.Tensor:
    """What an edit takes away from a bias (n,)."""
    return (change.read @ vector.to(torch.float64)) @ change.remove


def _factors_of(
    place: LowRank, writer: Writer, change: Factors, product: Product, sign: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of one writer, in PEFT's order.

    W ← W + sign · remove ⊗ (read · W): the stream's side of the product is `remove`, the other
    side what is read off the weight. Which of them is A depends on the side that the stream is on.
    """
    held = product(writer, change.read)
    signed = sign * change.remove
    stream_out = writer.axis == place.out_axis
    if place.experts is None:
        return (held, signed.T) if stream_out else (signed, held.T)
    # A: (experts, k, in) flattened to rows. B: (out, k, experts) flattened to columns.
    if stream_out:
        return (
            held.transpose(0, 1).flatten(0, 1),
            signed.T[:, :, None].expand(-1, -1, place.experts).flatten(1),
        )
    return signed.repeat(place.experts, 1), held.permute(2, 0, 1).flatten(1)


def _zeros(place: LowRank, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    out = place.shape[place.out_axis]
    inner = place.shape[-1] if place.out_axis != len(place.shape) - 1 else place.shape[-2]
    rank *= place.experts or 1
    return torch.zeros(rank, inner), torch.zeros(out, rank)


def _omissions(layout: Layout) -> tuple[str, ...]:
    """One line a reason: how many writers are left out, and what that costs."""
    names: dict[str, list[str]] = {}
    for left in layout.left_out:
        names.setdefault(left.reason, []).append(left.parameter)
    return tuple(
        f"{len(parameters)} of the edited writers {'stay' if len(parameters) > 1 else 'stays'} "
        f"unedited ({parameters[0]}{', …' if len(parameters) > 1 else ''}): {reason}"
        for reason, parameters in names.items()
    )


def describe_file(path: Path) -> WrittenFile:
    """A file of an adapter as it was written."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return WrittenFile(path=path.name, sha256=digest, size_bytes=path.stat().st_size)
