"""Which writers share a strength: those in the same child module of a layer, and those before it.

Knows names of parameters; neither weights nor strengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abl_hub.model.writers import Trace, Writer

OUTSIDE = "outside the layers"


def groups(trace: Trace) -> tuple[str, ...]:
    """One name a writer: "3.self_attn" in layer 3, or `OUTSIDE` (the embedding)."""
    return tuple(_group(writer, trace.layers) for writer in trace.writers)


def _group(writer: Writer, layers: str) -> str:
    if writer.layer is None:
        return OUTSIDE
    _, _, inside = writer.parameter.partition(f"{layers}.{writer.layer}.")
    return f"{writer.layer}.{inside.partition('.')[0]}"


def spread(names: Sequence[str], strengths: Mapping[str, float]) -> tuple[float, ...]:
    """One strength a writer, from one a group; a group that was not fitted keeps 1."""
    return tuple(strengths.get(name, 1.0) for name in names)
