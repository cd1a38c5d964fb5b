"""Where and how to publish, under which names, and whether it may be published at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from abl_hub.errors import HubError
from abl_hub.hub.failures import translated
from abl_hub.hub.licence import forbids_derivatives, named_as_asked

if TYPE_CHECKING:
    from abl_hub.hub.source import SourcePlan
    from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record

Part = Literal["merged", "delta", "direction", "space"]
PARTS: tuple[Part, ...] = ("merged", "delta", "direction", "space")
_USUAL: tuple[Part, ...] = ("merged", "delta", "space")
SPACE = "space"
NO_SPACE = "its base is a folder on this machine, which nobody else can load"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how to publish.

    Args:
        namespace: user or organisation; None is the token's own.
        merged_repo, delta_repo, direction_repo, space_repo: names; None derives them from the
            base's.
        only: parts to publish; empty is all but the direction by itself.
        public: publicly instead of privately.
        gated: readers must ask for access.
        gate_prompt: what they read when they ask; None is a text about the edit.
        collection: title of a collection to tie base, merged, delta and Space together.
        create_pr: open pull requests instead of committing.
        yes: publish publicly though the verdict is not SUPPORTED.
    """

    namespace: str | None = None
    merged_repo: str | None = None
    delta_repo: str | None = None
    direction_repo: str | None = None
    space_repo: str | None = None
    only: tuple[Part, ...] = ()
    public: bool = False
    gated: Literal["auto", "manual"] | None = None
    gate_prompt: str | None = None
    collection: str | None = None
    create_pr: bool = False
    yes: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in PARTS if part in self.only) or _USUAL


@dataclass(frozen=True, kw_only=True)
class Base:
    """What publishing has to know of the base: its name, its licence, what is changed in it.

    `repo` is None where the base is a folder; `refused` says why there is none of a form.
    """

    name: str
    repo: str | None
    licence: str | None
    licence_name: str | None
    behaviour: str
    induce: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> Mapping[str, str]:
        """Part → why there is none: a Space loads its base from the Hub, and a delta."""
        no_space = NO_SPACE if self.repo is None else self.refused.get("delta")
        return {**self.refused, **({SPACE: no_space} if no_space else {})}

    @classmethod
    def of_record(cls, record: Record) -> Base:
        source = record.source
        return cls(
            name=source.repo or source.name,
            repo=source.repo,
            licence=source.licence,
            licence_name=source.licence_name,
            behaviour=record.direction.behaviour,
            induce=record.recipe.induce,
            refused=record.refused,
        )

    @classmethod
    def of_plan(cls, source: SourcePlan, recipe: Recipe) -> Base:
        """Before anything is extracted."""
        return cls(
            name=source.repo or source.name,
            repo=source.repo,
            licence=source.licence.id,
            licence_name=source.licence.name,
            behaviour=recipe.behaviour,
            induce=recipe.induce,
        )


def published_parts(base: Base, target: Target) -> tuple[Part, ...]:
    """The parts that there are and that others can use.

    Raises:
        HubError: of those that are asked for there is none.
    """
    parts = tuple(part for part in target.parts if part not in base.missing)
    if not parts:
        why = "; ".join(dict.fromkeys(base.missing[part] for part in target.parts))
        raise HubError(f"There is no {' and no '.join(target.parts)} to publish", why=why)
    return parts


def refuse_lost_addition(record: Record, parts: Collection[Part], out: Path) -> None:
    """An addition's merged model is not made while it is pushed.

    Raises:
        HubError: it is to be published, and is not in `out`.
    """
    if record.recipe.induce and "merged" in parts and not (out / "merged").is_dir():
        raise HubError(
            f"{out} has no merged model",
            why="one to which a direction was added cannot be made while it is pushed",
            next_step=f"Run `abl-hub apply {out}` and `abl-hub evaluate {out}`",
        )


def repositories(base: Base, target: Target, owner: str) -> dict[str, str]:
    """Repository ids of all parts; of the direction only if it is published.

    Raises:
        HubError: an id is none, the base's, or that of two parts; or as `published_parts`.
    """
    name = base.name.rstrip("/").rpartition("/")[2]
    name = named_as_asked(name, base.licence, base.licence_name)
    way = "induced" if base.induce else "abliterated"
    names = {
        "merged": target.merged_repo or f"{name}-{way}",
        "delta": target.delta_repo or f"{name}-{way}-delta",
        "direction": target.direction_repo or f"{name}-{way}-direction",
        "space": target.space_repo or f"{name}-{way}-compare",
    }
    repos = {part: f"{owner}/{chosen}" for part, chosen in names.items()}
    # The Hub does not tell upper from lower case.
    taken = {("model", base.repo.lower()): "the base"} if base.repo else {}
    for part in published_parts(base, target):
        with translated(repos[part]):
            validate_repo_id(repos[part])
        place = (repo_type(part), repos[part].lower())
        if place in taken:
            raise HubError(
                f"The {part} would replace {taken[place]} in {repos[part]}",
                next_step=f"Give --{part}-repo another name",
            )
        taken[place] = f"the {part}"
    # Of what is not published now, whatever has a place of its own.
    return {
        part: repo
        for part, repo in repos.items()
        if part in target.parts or (part in _USUAL and (repo_type(part), repo.lower()) not in taken)
    }


def repo_type(part: str) -> Literal["model", "dataset", "space"]:
    """What kind of repository a part is published as."""
    if part == SPACE:
        return "space"
    return "dataset" if part == "direction" else "model"


def described(part: Part, target: Target) -> str:
    """Who may read a part, and how it gets there: "private, not gated"."""
    words = ["public" if target.public else "private"]
    if part != SPACE:  # the Hub gates models and data sets only
        words.append(f"gated {target.gated}" if target.gated else "not gated")
    if target.create_pr:
        words.append("as a pull request")
    return ", ".join(words)


def gate_prompt(base: Base, target: Target) -> str | None:
    """What the Hub shows to who asks for access; None where nobody has to."""
    if target.gated is None:
        return None
    if base.induce:
        return target.gate_prompt or (
            f"This is {base.name} with one direction added, so that it shows more of one behaviour "
            f"({base.behaviour}). By asking for access you confirm that you have read the card, "
            "and that you will keep to the base model's licence and to the law."
        )
    return target.gate_prompt or (
        f"This is {base.name} with one direction removed, so that "
        f"it shows less of one behaviour ({base.behaviour}). Safeguards that rest on "
        "it are weaker or gone. By asking for access you confirm that you have read the card, and "
        "that you will keep to the base model's licence and to the law."
    )


def check_allowed(record: Record, target: Target) -> None:
    """Refuse what must not be published as asked.

    Raises:
        HubError: the licence forbids derivatives; or public, and the verdict is not SUPPORTED.
    """
    check_licence(Base.of_record(record))
    verdict = record.evaluation.verdict.label if record.evaluation else "none"
    if target.public and verdict != "SUPPORTED" and not target.yes:
        raise HubError(
            f"The verdict is {verdict}",
            why="a public model should do what its card is read to say",
            next_step="Publish privately, or confirm with --yes",
        )


def check_licence(base: Base) -> None:
    """Refuse to publish what the licence forbids.

    Raises:
        HubError: it forbids derivatives.
    """
    if forbids_derivatives(base.licence, base.licence_name):
        raise HubError(
            f"{base.name} must not be published edited",
            why=f"its licence, {base.licence_name or base.licence}, forbids derivatives",
            next_step="Keep the result to yourself",
        )
