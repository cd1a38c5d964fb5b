"""When two prompts are the same: whatever their case, spacing and way of writing a character."""

from __future__ import annotations

import unicodedata


def plain(prompt: str) -> str:
    """What all spellings of `prompt` have in common."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
