"""Progress as an argument: long functions report to a `Progress`, silent by default.

Does not know terminals; `abl_hub.cli.output` binds it to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of units done since the last call."""


class Progress(Protocol):
    """Something that can show how far a stage has come."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Open a stage of `total` units (None: unknown); call the result with units done."""
        ...

    def note(self, text: str) -> None:
        """Tell the user one thing worth knowing now (a warning, a choice that was made)."""
        ...


class Silent:
    """The default: shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        def advance(_done: int) -> None:
            return None

        yield advance

    def note(self, text: str) -> None:
        return None


SILENT = Silent()
