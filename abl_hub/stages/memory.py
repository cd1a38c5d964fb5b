"""Whether a model fits into this machine's memory, before it is loaded."""

from __future__ import annotations

from pathlib import Path

from abl_hub.errors import SourceError
from abl_hub.hub.source import plan_source

_MEMINFO = Path("/proc/meminfo")


def refuse_if_too_large(
    source: str, *, revision: str | None = None, available: int | None = None
) -> None:
    """Hold a model's weights against the memory that is free.

    Args:
        source: Hub id or folder.
        available: bytes; None asks the machine. Where that is not known, nothing is refused.

    Raises:
        SourceError: the weights are larger.
    """
    free = _available() if available is None else available
    weights = plan_source(source, revision=revision).weight_bytes
    if free is not None and weights > free:
        raise SourceError(
            f"{source} does not fit into memory",
            why=f"its weights take {weights / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            next_step="Use a larger machine, or push it and use its Space",
        )


def _available() -> int | None:
    """Bytes that programs can still get, as Linux says; None elsewhere."""
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
