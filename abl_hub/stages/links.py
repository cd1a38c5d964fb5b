"""Links in an output: it has none, and a stranger's are neither written through nor published.

Knows paths; not what lies there.
"""

from __future__ import annotations

from pathlib import Path

from abl_hub.errors import OutputError


def refuse_links(*places: Path) -> None:
    """Refuse to go on where one of `places` is a link.

    Raises:
        OutputError: one is.
    """
    linked = next((path for path in places if path.is_symlink()), None)
    if linked is not None:
        raise OutputError(
            f"{linked} is a link",
            why="an output has none, and what it leads to lies elsewhere",
            next_step="Remove it, or make the output again",
        )
