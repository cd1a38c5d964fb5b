"""The algebra: one `Edit`, and for each writer the low-rank factors that every form applies.

Weight orthogonalization (Arditi et al. 2024, section 4.1, equation 5) for any linear writer:
W ← W − Σᵢ uᵢ (vᵢ · W), contracted over the writer's stream axis, with vᵢ · uⱼ = δᵢⱼ at strength 1.

- Nothing between writer and stream: v = u = r, the orthogonal projection; or, for an oblique edit
  (affine erasure), v = r and a u of its own with r · u = 1.
- A norm with gain g between them: v = g ⊙ r, so that the null is exact, and u is oblique. The norm
  rescales each token anew, by what is left of its write; of the u that can be had the one is taken
  whose writes are nearest to those of runtime ablation in a simulation.

Knows vectors; knows neither where the weights lie nor how they are written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from abl_hub.errors import EditError
from abl_hub.model.writers import Centre, Gain, Writer

Gains = Mapping[str, torch.Tensor]
"""Parameter name of a norm's gain → its effective gain g (width,), 1 + w already resolved."""

_RIDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
_SIMULATED_TOKENS = 256
_MOST_SKEWED = 1e8


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """Which directions are removed from which writers, and how strongly.

    Args:
        directions: (k, width), float64, orthonormal rows: what the stream no longer has a
            component along.
        writers: the parameters that are edited.
        strengths: one a writer; 1 removes the component, 0 leaves it, 2 reflects it.
        along: (k, width), float64: what is subtracted for each component (u), with
            directions · alongᵀ the identity; None is the directions themselves, the orthogonal
            projection. Anything else is an oblique one, with the same null.
    """

    directions: torch.Tensor
    writers: tuple[Writer, ...]
    strengths: tuple[float, ...]
    along: torch.Tensor | None = None

    def __post_init__(self) -> None:
        directions = self.directions.detach().to("cpu", torch.float64).clone()
        if directions.ndim != 2 or not bool(torch.isfinite(directions).all()):
            raise ValueError(f"directions must be finite and (k, width), not {directions.shape}")
        identity = torch.eye(len(directions), dtype=torch.float64)
        if not torch.allclose(directions @ directions.T, identity, atol=1e-9):
            raise ValueError("directions must be orthonormal")
        if len(self.strengths) != len(self.writers):
            raise ValueError(f"{len(self.strengths)} strengths for {len(self.writers)} writers")
        object.__setattr__(self, "directions", directions)
        if self.along is not None:
            along = self.along.detach().to("cpu", torch.float64).clone()
            if along.shape != directions.shape or not bool(torch.isfinite(along).all()):
                raise ValueError(f"along is {along.shape}, directions are {directions.shape}")
            if not torch.allclose(directions @ along.T, identity, atol=1e-9):
                raise ValueError("directions · alongᵀ must be the identity")
            object.__setattr__(self, "along", along)

    @property
    def subtracted(self) -> torch.Tensor:
        """(k, width): what is subtracted from the stream for each unit of its component."""
        return self.directions if self.along is None else self.along

    @property
    def rank(self) -> int:
        return len(self.directions)

    @property
    def digest(self) -> str:
        """SHA-256 over directions, writers and strengths: the edit's identity."""
        about = [
            [w.parameter, w.axis, list(w.shape), s]
            for w, s in zip(self.writers, self.strengths, strict=True)
        ]
        identity = hashlib.sha256(self.directions.numpy().tobytes())
        if self.along is not None:
            identity.update(self.along.numpy().tobytes())
        identity.update(json.dumps(about, sort_keys=True).encode())
        return identity.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """The low-rank change of one writer: W ← W − Σᵢ removeᵢ (readᵢ · W) along its stream axis.

    Args:
        read: (k, n), float64: what is read off the writer (v).
        remove: (k, n), float64: what is taken away for it, strength included (α u).
    """

    read: torch.Tensor
    remove: torch.Tensor


def remove(
    directions: torch.Tensor,
    writers: tuple[Writer, ...],
    strength: float = 1.0,
    *,
    layers: tuple[int, int] | None = None,
    along: torch.Tensor | None = None,
) -> Edit:
    """The `Edit` that removes `directions` (k, width) from `writers` with one strength.

    Args:
        layers: first and last decoder layer to edit, 0-based, both included; None is all. What
            writes before the layers (the embedding) is edited where the first layer is.
        along: see `Edit`; only for directions that are orthonormal already.

    Raises:
        EditError: the directions are dependent, or no writer lies in those layers.
    """
    basis = orthonormal(directions) if along is None else directions
    strengths = tuple(strength if _within(writer, layers) else 0.0 for writer in writers)
    if layers is not None and not any(_within(writer, layers) for writer in writers):
        raise EditError(
            f"No writer lies in layers {layers[0]} to {layers[1]}",
            next_step="Give a range of layers that the model has",
        )
    return Edit(directions=basis, writers=writers, strengths=strengths, along=along)


def _within(writer: Writer, layers: tuple[int, int] | None) -> bool:
    return layers is None or layers[0] <= (writer.layer or 0) <= layers[1]


def orthonormal(directions: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows spanning `directions` (k, width), the first one kept as it points.

    Raises:
        EditError: the directions are linearly dependent.
    """
    rows = directions.detach().to("cpu", torch.float64)
    rows = rows[None] if rows.ndim == 1 else rows
    q, upper = torch.linalg.qr(rows.T)
    diagonal = upper.diagonal()
    if bool((diagonal.abs() < 1e-8 * rows.norm(dim=1).clamp_min(1e-300)).any()):
        raise EditError(
            "The directions are linearly dependent",
            next_step="Give directions that span as many dimensions as there are",
        )
    basis: torch.Tensor = (q * diagonal.sign()).T.contiguous()
    return basis


def factors(edit: Edit, writer: Writer, strength: float, gains: Gains) -> Factors:
    """The factors of `edit` for one writer.

    Raises:
        EditError: the gains between writer and stream hide a direction from the writer, so that
            no change of it can remove that direction.
    """
    read = _at_parameter(edit.directions, writer, gains)
    if not writer.between:
        return Factors(read=read, remove=strength * edit.subtracted)
    gram = read @ read.T
    if not bool(torch.isfinite(gram).all()) or float(torch.linalg.matrix_rank(gram)) < edit.rank:
        raise EditError(
            f"{writer.parameter} cannot be edited",
            why="the norm behind it has gains that cancel the direction",
        )
    gain, centred = _gain(writer, gains), Centre() in writer.between
    options = [torch.linalg.solve(gram, read)]
    for ridge in _RIDGES:
        raw = edit.subtracted * gain / (gain**2 + ridge * (gain**2).mean())
        if centred:
            raw = raw - raw.mean(dim=-1, keepdim=True)
        overlap = raw @ read.T
        if bool(torch.isfinite(raw).all()) and float(torch.linalg.cond(overlap)) < _MOST_SKEWED:
            options.append(torch.linalg.solve(overlap, raw))
    best = min(options, key=lambda u: _simulated_error(u, read, gain, centred, edit))
    return Factors(read=read, remove=strength * best)


def _at_parameter(directions: torch.Tensor, writer: Writer, gains: Gains) -> torch.Tensor:
    """Carry covectors of the stream (k, width) back through what lies between, to the writer."""
    read = directions
    for step in writer.between:
        if isinstance(step, Gain):
            read = read * gains[step.parameter].to(torch.float64)
        else:
            read = read - read.mean(dim=-1, keepdim=True)
    return read


def _gain(writer: Writer, gains: Gains) -> torch.Tensor:
    """(width,): the product of the gains between writer and stream."""
    product = torch.ones(())
    for step in writer.between:
        if isinstance(step, Gain):
            product = product * gains[step.parameter].to(torch.float64)
    return product


def _simulated_error(
    remove: torch.Tensor, read: torch.Tensor, gain: torch.Tensor, centred: bool, edit: Edit
) -> float:
    """Relative error against runtime ablation, for writes g ⊙ x / rms(x) with Gaussian x.

    The seed is fixed: the choice of the ridge belongs to the edit and must not depend on chance.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_SIMULATED_TOKENS, read.shape[-1], generator=generator, dtype=torch.float64)

    def normed(y: torch.Tensor) -> torch.Tensor:
        y = y - y.mean(dim=-1, keepdim=True) if centred else y
        return gain * y / y.square().mean(dim=-1, keepdim=True).sqrt()

    wanted = normed(x) - normed(x) @ edit.directions.T @ edit.subtracted
    got = normed(x - (x @ read.T) @ remove)
    return float((got - wanted).norm() / wanted.norm())
