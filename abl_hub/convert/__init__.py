"""The whole flow: extract → apply → evaluate → card → push, each stage a module of its own.

The stages talk through the output folder: a stage reads what the one before wrote, so each can be
run alone and a broken run goes on where it stopped.
"""

from __future__ import annotations

from abl_hub.convert.flow import convert

__all__ = ["convert"]
