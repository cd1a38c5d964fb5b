"""The command line: Click, one `Output` sink, one file a command group. Thin; imports lazily."""

from __future__ import annotations

from abl_hub.cli.group import abl_hub


def main() -> None:
    """Entry point of `abl-hub` and `hf-abl`."""
    abl_hub(prog_name="abl-hub")


__all__ = ["main"]
