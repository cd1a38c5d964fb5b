"""Ctrl-C is heard wherever it comes: the import of a library may swallow the exception."""

from __future__ import annotations

import signal
from types import FrameType

_heard: list[int] = []


def listen() -> None:
    """From now on remember that Ctrl-C was pressed, besides raising KeyboardInterrupt.

    Whoever started us deaf to it, as a shell does what runs behind it, or nohup, is obeyed.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _hear)


def raise_if_heard() -> None:
    """Raise the KeyboardInterrupt that somebody swallowed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed since `listen`.
    """
    if _heard:
        raise KeyboardInterrupt


def _hear(number: int, _frame: FrameType | None) -> None:
    _heard.append(number)
    raise KeyboardInterrupt
