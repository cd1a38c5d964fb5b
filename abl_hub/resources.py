"""Where the templates lie: `spaces/` and `cards/`, in the wheel or beside the package.

Knows only paths; does not read or render what is there.
"""

from __future__ import annotations

from pathlib import Path

from abl_hub.errors import SourceError

_PACKAGE = Path(__file__).resolve().parent


def templates(name: str) -> Path:
    """Folder of the templates called `name` (`"spaces"` or `"cards"`).

    Raises:
        SourceError: the installation is incomplete.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise SourceError(
        f"The {name} templates are not installed",
        why=f"neither {_PACKAGE / name} nor {_PACKAGE.parent / name} exists",
        next_step="Reinstall abl-hub",
    )
