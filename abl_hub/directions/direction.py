"""A direction in the residual stream, as a value that can be saved, shared and checked.

Knows where it was read (layer, position) and by which method; not how, nor what it is used for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from abl_hub.errors import OutputError, SourceError

_FORMAT = "abl-hub direction 1"
_TENSORS = ("direction", "further", "along")


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A unit vector of the residual stream and where it was read.

    Args:
        vector: (width,), float64, unit length.
        layer: 0-based decoder layer at whose output it was read.
        position: post-instruction position, counted from the end of the prompt (-1: last token).
        norm: length of the vector before it was scaled to one, in units of the residual stream;
            the amount that activation addition adds (Arditi et al. 2024, section 2.4).
        method: name in the registry of `abl_hub.directions`.
        behaviour: what the contrast is about ("refusal").
        further: (k − 1, width), float64: directions that are removed with `vector`, orthonormal to
            it and to each other; None for a single direction.
        along: (k, width), float64: what is subtracted for each component, for oblique (affine)
            erasure; None for the orthogonal projection.
    """

    vector: torch.Tensor
    layer: int
    position: int
    norm: float
    method: str
    behaviour: str = "refusal"
    further: torch.Tensor | None = None
    along: torch.Tensor | None = None

    def __post_init__(self) -> None:
        vector = self.vector.detach().to("cpu", torch.float64).clone()
        if vector.ndim != 1 or not bool(torch.isfinite(vector).all()):
            raise ValueError(f"a direction is a finite vector, not of shape {tuple(vector.shape)}")
        length = float(vector.norm())
        if length == 0.0:
            raise ValueError("a direction cannot be zero")
        # What is unit already stays as it is, so that a digest survives the disk.
        unit = vector if abs(length - 1.0) < 1e-12 else vector / length
        object.__setattr__(self, "vector", unit)
        for name in ("further", "along"):
            rows = getattr(self, name)
            if rows is not None:
                rows = rows.detach().to("cpu", torch.float64).clone().contiguous()
                object.__setattr__(self, name, rows)

    @property
    def width(self) -> int:
        return int(self.vector.numel())

    @property
    def basis(self) -> torch.Tensor:
        """(k, width), float64, orthonormal: everything that is removed, `vector` first."""
        first = self.vector[None]
        return first if self.further is None else torch.cat([first, self.further])

    @property
    def rank(self) -> int:
        return len(self.basis)

    @property
    def addition(self) -> torch.Tensor:
        """(width,): what activation addition adds, `norm` long."""
        if self.along is None:
            return self.norm * self.vector
        unit: torch.Tensor = self.along[0] / self.along[0].norm()
        return self.norm * unit

    @property
    def digest(self) -> str:
        """SHA-256 of the float64 bytes of all tensors: the direction's identity."""
        return _digest(self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        named = {"direction": self.vector, "further": self.further, "along": self.along}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def save(self, path: Path) -> None:
        """Write `path` as safetensors: the tensor `direction` (with `further` and `along` where
        they are not None), everything else as metadata.

        Raises:
            OutputError: it cannot be written there.
        """
        about = {
            "layer": self.layer,
            "position": self.position,
            "norm": self.norm,
            "method": self.method,
            "behaviour": self.behaviour,
            "digest": self.digest,
        }
        metadata = {"format": _FORMAT, "about": json.dumps(about, sort_keys=True)}
        try:
            # Not by `save_file`, whose files only their owner may read.
            path.write_bytes(save(self._tensors(), metadata=metadata))
        except OSError as error:
            raise OutputError(f"{path} cannot be written", why=str(error)) from error

    @classmethod
    def load(cls, path: Path) -> Direction:
        """Read what `save` wrote.

        Raises:
            SourceError: not such a file, or its vector is not the one whose digest it carries.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise SourceError(
                        f"{path} is not a direction",
                        why=f"its format is {metadata.get('format')!r}, not {_FORMAT!r}",
                        next_step="Give a direction.safetensors that abl-hub wrote",
                    )
                about = _ABOUT.validate_json(metadata["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if "direction" not in tensors or not tensors.keys() <= set(_TENSORS):
                raise ValueError(f"it holds {', '.join(sorted(tensors)) or 'nothing'}")
            found = _digest(tensors)
            direction = cls(
                vector=tensors.pop("direction"),
                **tensors,
                layer=about.layer,
                position=about.position,
                norm=about.norm,
                method=about.method,
                behaviour=about.behaviour,
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{path} cannot be read as a direction",
                why=_what_is_wrong(error),
                next_step="Put it back, or run `abl-hub extract` again",
            ) from error
        if found != about.digest:
            raise SourceError(
                f"{path} does not hold the direction whose digest it carries",
                why="it was changed",
                next_step="Put the right one back, or run `abl-hub extract` again",
            )
        return direction


@dataclass(frozen=True, kw_only=True)
class _About:
    """What stands beside the tensors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    layer: int
    position: int
    norm: float
    method: str
    behaviour: str
    digest: str


_ABOUT = TypeAdapter(_About)


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'its description'}: {first['msg']}"
    return str(error)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    identity = hashlib.sha256()
    for name in _TENSORS:
        if name in tensors:
            identity.update(tensors[name].numpy().tobytes())
    return identity.hexdigest()
