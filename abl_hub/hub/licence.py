"""A base model's licence: carried over, and what it asks of whoever publishes an edited copy.

Knows the Hub's licence ids. A reminder, not legal advice.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LICENCE_FILES = ("licen[cs]e*", "copying*", "notice*", "*use_policy*", "*use-policy*")
"""Names, in lower case, of top-level files that must travel with a model."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What a card says about the licence.

    Args:
        id: the Hub's licence id ("apache-2.0", "llama3.1", "other"); several joined by ", ";
            None: the card names none.
        name, link: of a licence that has no id of its own (`license_name`, `license_link`).
        files: licence, notice and use-policy files, relative to the source's folder.
    """

    id: str | None
    name: str | None
    link: str | None
    files: tuple[str, ...]


def read_licence(card: Mapping[str, Any], paths: Iterable[str]) -> Licence:
    """The licence from a card's metadata and the paths of a repository."""
    ids = card.get("license")
    named = ", ".join(str(one) for one in ids) if isinstance(ids, list) else ids
    return Licence(
        id=str(named) if named else None,
        name=_text(card.get("license_name")),
        link=_text(card.get("license_link")),
        files=tuple(sorted(path for path in paths if is_licence_file(path))),
    )


def is_licence_file(path: str) -> bool:
    return "/" not in path and any(fnmatch.fnmatch(path.lower(), p) for p in LICENCE_FILES)


def forbids_derivatives(licence: str | None) -> bool:
    """Whether an edited model must not be shared under this id.

    The "no derivatives" licences of Creative Commons permit sharing of the unchanged work only
    (CC BY-ND 4.0, section 2(a)(1)(B)).
    """
    return any(re.fullmatch(r"cc-by(-nc)?-nd(-.*)?", one) for one in _ids(licence))


@dataclass(frozen=True, kw_only=True)
class _Duty:
    licences: str  # regular expression over licence ids
    duty: str
    reason: str


_DUTIES = (
    _Duty(
        licences=r"llama3.*|llama4.*",
        duty="Show “Built with Llama” and begin the model's name with “Llama”",
        reason="Llama 3 Community License, 1.b.i",
    ),
    _Duty(
        licences=r"llama.*",
        duty="Pass on the licence, its acceptable use policy and Meta's attribution notice",
        reason="Llama Community Licenses, 1.b",
    ),
    _Duty(
        licences=r"gemma",
        duty="Pass on the Gemma Terms of Use with their use restrictions, say that the files were "
        "modified, and include the notice “Gemma is provided under and subject to the Gemma Terms "
        "of Use found at ai.google.dev/gemma/terms”",
        reason="Gemma Terms of Use, 3.1",
    ),
    _Duty(
        licences=r"apache-2\.0",
        duty="Pass on the licence and any NOTICE file, and say that the files were modified",
        reason="Apache License 2.0, 4",
    ),
    _Duty(
        licences=r"mit|bsd.*|isc",
        duty="Keep the copyright and permission notice",
        reason="the licence's own condition",
    ),
    _Duty(
        licences=r".*openrail.*",
        duty="Pass on the use restrictions to whoever uses the model",
        reason="Open RAIL licences, attachment A",
    ),
    _Duty(
        licences=r"cc-by.*",
        duty="Credit the authors, link the licence and say that changes were made",
        reason="Creative Commons BY, 3(a)",
    ),
    _Duty(
        licences=r"cc-by(-nc)?-sa.*",
        duty="Publish under the same licence",
        reason="Creative Commons SA, 3(b)",
    ),
    _Duty(
        licences=r"cc-by-nc.*",
        duty="No commercial use",
        reason="Creative Commons NC, 2(a)(1)",
    ),
    _Duty(
        licences=r"other",
        duty="Read the licence that the base model links to before sharing this model",
        reason="it is not one that the Hub knows",
    ),
)


def duties(licence: str | None) -> tuple[str, ...]:
    """What the licence asks of whoever publishes an edited copy, one sentence each with its source.

    Empty for a licence that is not in the table, which is no statement that it asks nothing.
    """
    if licence is None:
        return ("The base model names no licence: ask its authors before sharing this model",)
    return tuple(
        f"{entry.duty} ({entry.reason})"
        for entry in _DUTIES
        if any(re.fullmatch(entry.licences, one) for one in _ids(licence))
    )


def _ids(licence: str | None) -> list[str]:
    return [one.strip().lower() for one in (licence or "").split(",") if one.strip()]


def _text(value: object) -> str | None:
    return str(value) if value else None
