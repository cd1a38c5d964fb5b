"""The command line: Click, one `Output` sink, one file a command group. Thin; imports lazily."""

from __future__ import annotations

import os
import sys

from abl_hub.cli.group import abl_hub
from abl_hub.cli.interrupt import listen

_INTERRUPTED = 130


def main() -> None:
    """Entry point of `abl-hub` and `hf-abl`."""
    listen()
    try:
        abl_hub(prog_name="abl-hub")
    except SystemExit as leaving:
        if leaving.code != _INTERRUPTED:
            raise
        # Everything of ours is unwound; threads of the libraries below may still run, and abort a
        # process that takes its interpreter down around them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)


__all__ = ["main"]
