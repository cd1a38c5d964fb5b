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


def forbids_derivatives(licence: str | None, name: str | None = None) -> bool:
    """Whether an edited model must not be shared under this id, or "other" licence of this name.

    The "no derivatives" licences of Creative Commons permit sharing of the unchanged work only
    (CC BY-ND 4.0, section 2(a)(1)(B)).
    """
    return any(re.fullmatch(r"cc-by(-nc)?-nd(-.*)?", one) for one in _names(licence, name))


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What one family of licences asks of whoever publishes an edited copy.

    Args:
        licences: regular expression over licence ids and names.
        duty, reason: what is asked, and where it stands.
        shown: a sentence that has to be displayed.
        notice: the text that a Notice file has to hold.
        prefix: what the name of an edited model has to begin with.
    """

    licences: str
    duty: str | None = None
    reason: str = ""
    shown: str | None = None
    notice: str | None = None
    prefix: str | None = None


def _llama(version: str, licence: str) -> str:
    return (
        f"{version} is licensed under the {licence} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )


_SAFETY_MEASURES = (
    "The acceptable use policy forbids circumventing or removing safety measures: whether this "
    "edit does so is yours to judge before you publish it"
)

# Llama 3 and 3.2: from their own texts; Gemma and NVIDIA: from quoted clauses; the other Llama
# licences, Qwen and Mistral: from what others quote of theirs.
_TERMS = (
    _Terms(
        licences=r"llama[-.]?2(-.*)?",
        notice=_llama("Llama 2", "LLAMA 2"),
    ),
    _Terms(
        licences=r"llama[-.]?3(-.*)?",
        shown="Built with Meta Llama 3",
        prefix="Llama 3",
        notice=_llama("Meta Llama 3", "Meta Llama 3"),
    ),
    *(
        _Terms(
            licences=rf"llama[-.]?{re.escape(version)}(-.*)?",
            shown="Built with Llama",
            prefix="Llama",
            notice=_llama(f"Llama {version}", f"Llama {version}"),
        )
        for version in ("3.1", "3.2", "3.3", "4")
    ),
    _Terms(
        licences=r"llama.*",
        duty="Pass on the licence, its acceptable use policy and Meta's attribution notice",
        reason="Llama Community Licenses, 1.b",
    ),
    _Terms(
        licences=r"llama[-.]?(3\.2|3\.3|4)(-.*)?",
        duty=_SAFETY_MEASURES,
        reason="Llama 3.2, 3.3 and 4 Acceptable Use Policies, 1",
    ),
    _Terms(
        licences=r"gemma.*",
        duty="Pass on the Gemma Terms of Use with their use restrictions, and say that the files "
        "were modified",
        reason="Gemma Terms of Use, 3.1",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
    ),
    _Terms(
        licences=r"gemma.*",
        duty="The prohibited use policy forbids attempts to override or circumvent safety "
        "filters: whether this edit does so is yours to judge before you publish it",
        reason="Gemma Prohibited Use Policy",
    ),
    _Terms(
        licences=r"qwen|qwen-license.*",
        duty="Pass on the licence and say that the files were modified; above 100 million monthly "
        "users, ask for a licence",
        reason="Qwen License Agreement of September 2024, 3 and 4",
        shown="Improved using Qwen",
        notice="Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. "
        "All Rights Reserved.",
    ),
    _Terms(
        licences=r"qwen-research.*",
        duty="Pass on the licence, say that the files were modified, and use them for research or "
        "evaluation only",
        reason="Qwen Research License Agreement of September 2024, 2 and 3",
        shown="Improved using Qwen",
        notice="Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba "
        "Cloud. All Rights Reserved.",
    ),
    _Terms(
        licences=r"tongyi-qianwen.*",
        duty="Pass on the licence and its attribution notice, and say that the files were modified",
        reason="Tongyi Qianwen License Agreement, 3",
    ),
    _Terms(
        licences=r"nvidia-open-model.*",
        duty="Pass on the licence; its rights end where a safety guardrail is circumvented without "
        "a substantially similar one",
        reason="NVIDIA Open Model License, 2.1 and 3",
        notice="Licensed by NVIDIA Corporation under the NVIDIA Open Model License",
    ),
    _Terms(
        licences=r"mrl.*|mistral-ai-research.*",
        duty="Pass on the licence, and use the model for research only",
        reason="Mistral AI Research License",
        notice="Licensed by Mistral AI under the Mistral AI Research License",
    ),
    _Terms(
        licences=r"apache-2\.0",
        duty="Pass on the licence and any NOTICE file, and say that the files were modified",
        reason="Apache License 2.0, 4",
    ),
    _Terms(
        licences=r"mit|bsd.*|isc",
        duty="Keep the copyright and permission notice",
        reason="the licence's own condition",
    ),
    _Terms(
        licences=r".*openrail.*|deepseek.*",
        duty="Pass on the use restrictions to whoever uses the model",
        reason="Open RAIL licences and those made after them, attachment A",
    ),
    _Terms(
        licences=r"cc-by.*",
        duty="Credit the authors, link the licence and say that changes were made",
        reason="Creative Commons BY, 3(a)",
    ),
    _Terms(
        licences=r"cc-by(-nc)?-sa.*",
        duty="Publish under the same licence",
        reason="Creative Commons SA, 3(b)",
    ),
    _Terms(
        licences=r"cc-by-nc.*",
        duty="No commercial use",
        reason="Creative Commons NC, 2(a)(1)",
    ),
    _Terms(
        licences=r"other",
        duty="Read the licence that the base model links to before sharing this model",
        reason="it is not one that the Hub knows",
    ),
)


def duties(
    licence: str | None, name: str | None = None, *, repo: str | None = None
) -> tuple[str, ...]:
    """What the licence asks of whoever publishes an edited copy, one sentence each with its source.

    Empty for a licence that is not in the table, which is no statement that it asks nothing.

    Args:
        licence: the Hub's id, or several joined by commas.
        name: `license_name` of an "other" one.
        repo: the name that it is published under; what a name has to begin with is asked for
            only where it does not.
    """
    if licence is None:
        return ("The base model names no licence: ask its authors before sharing this model",)
    terms = _terms(licence, name)
    renamed = [
        f"The model's name has to begin with “{one.prefix}” (Llama Community Licenses, 1.b.i)"
        for one in terms
        if one.prefix and repo is not None and not _begins(repo, one.prefix)
    ]
    return (*renamed, *(f"{one.duty} ({one.reason})" for one in terms if one.duty))


def notices(licence: str | None, name: str | None = None) -> tuple[str, ...]:
    """Sentences that the licence wants to be displayed wherever the model is published."""
    return tuple(one.shown for one in _terms(licence, name) if one.shown)


def notice_file(licence: str | None, name: str | None = None) -> str | None:
    """What a Notice text file has to say where the base brings none."""
    lines = [one.notice for one in _terms(licence, name) if one.notice]
    return "\n".join(lines) + "\n" if lines else None


def named_as_asked(model: str, licence: str | None, name: str | None = None) -> str:
    """A repository's name, beginning as the licence wants it to.

    "Meta-Llama-3-8B" loses what stands before "Llama-3"; a name without it gets it in front.
    """
    for one in _terms(licence, name):
        if one.prefix is not None and not _begins(model, one.prefix):
            prefix = one.prefix.replace(" ", "-")
            at = model.lower().find(prefix.lower())
            model = model[at:] if at > 0 else f"{prefix}-{model}"
    return model


def _begins(repo: str, prefix: str) -> bool:
    name = re.sub(r"[-_. ]", "", repo.rpartition("/")[2]).lower()
    return name.startswith(prefix.replace(" ", "").lower())


def _terms(licence: str | None, name: str | None) -> list[_Terms]:
    names = _names(licence, name)
    return [one for one in _TERMS if any(re.fullmatch(one.licences, each) for each in names)]


def _names(licence: str | None, name: str | None) -> list[str]:
    """Licence ids, and for an "other" one its name, written as ids are."""
    ids = [one.strip().lower() for one in (licence or "").split(",") if one.strip()]
    if "other" in ids and name:
        ids.append(re.sub(r"[\s_]+", "-", name.strip().lower()))
    return ids


def _text(value: object) -> str | None:
    return str(value) if value else None
