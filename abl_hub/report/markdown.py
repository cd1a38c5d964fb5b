"""Outside text made harmless for Markdown: it can start no markup, link, table cell or HTML.

Names of models, prompt sets, behaviours and folders come from strangers. Every filter here gives
one line, without control or direction-changing characters, and shows the text as it was given.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

# `://`, `@` and `www.` begin links on their own in the Hub's Markdown.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&!@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
_HUB = "https://huggingface.co"
_PATHS = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def one_line(value: Any) -> str:
    """The text on one line, without characters that are not seen (control, format, private)."""
    spaced = " ".join(str(value).split())
    seen = "".join(one for one in spaced if not unicodedata.category(one).startswith("C"))
    return " ".join(seen.split())


def plain(value: Any) -> str:
    """Running text: every character that could begin markup is escaped."""
    return _SPECIAL.sub(r"\\\1", one_line(value))


def code(value: Any) -> str:
    """A code span that its content cannot leave, in a table neither."""
    text = one_line(value).strip()
    if text and not set(text) & set("`|"):
        return f"`{text}`"
    # Inside a span neither can be escaped; a character reference never begins markup.
    return "<code>" + re.sub(r"[^\w ]", lambda found: f"&#{ord(found[0])};", text) + "</code>"


def script(lines: Sequence[Any]) -> str:
    """A fenced block of shell commands, one a line."""
    return _block("\n".join(map(one_line, lines)))


def command(parts: Sequence[Any]) -> str:
    """A fenced block of one shell command, continued over a line for each part.

    Its words are quoted already, which leaves nothing in them that would have to be made harmless.
    """
    return _block(" \\\n  ".join(map(str, parts)))


def _block(text: str) -> str:
    """With a fence longer than any in its content."""
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}sh\n{text}\n{fence}"


def quoted(value: Any) -> str:
    """A Python string literal for a snippet."""
    return repr(one_line(value)).replace("`", "\\x60")


def link(value: Any, kind: str = "model") -> str:
    """A link to a repository (a "model", "dataset" or "space"); a code span for a path."""
    text = str(value)
    # Without a namespace it may as well be a folder.
    if "/" not in text or not is_repo_id(text):
        return code(text)
    return f"[`{text}`]({_HUB}/{_PATHS[kind]}{quote(text)})"


def is_repo_id(value: Any) -> bool:
    """Whether the Hub could have a repository of this name."""
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True
