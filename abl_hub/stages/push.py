"""Stage 6: merged model, delta and Space, each one atomic commit, private by default.

Done is what was loaded back from the Hub and found to be what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from abl_hub import __version__
from abl_hub.edits.staging import staging
from abl_hub.errors import HubError
from abl_hub.hub.account import namespace
from abl_hub.hub.ahead import Ahead
from abl_hub.hub.collect import collect, tag_commit
from abl_hub.hub.copies import Origin
from abl_hub.hub.publish import Published, publish
from abl_hub.hub.repository import Repository
from abl_hub.report.record import load_record
from abl_hub.stages.card import published_files, write_card, write_cards
from abl_hub.stages.forms import DELTA, MERGED
from abl_hub.stages.legal import carry_legal
from abl_hub.stages.load_back import LoadedBack, load_back, reference
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.space import write_space
from abl_hub.stages.stream import stream_merged
from abl_hub.stages.target import (
    SPACE,
    Base,
    Part,
    Target,
    check_allowed,
    gate_prompt,
    published_parts,
    refuse_lost_addition,
    repo_type,
    repositories,
)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What is on the Hub now.

    Args:
        published: one of each part, in the order merged, delta, Space.
        loaded_back: what came back from there.
        tags: repository → tag of the commit, which names the version of abl-hub.
        collection: address of the collection that ties them together, if one was asked for.
    """

    published: tuple[Published, ...]
    loaded_back: LoadedBack
    tags: Mapping[str, str]
    collection: str | None


def push(
    out: Path, runtime: Runtime, target: Target | None = None, *, stream: bool = False
) -> Pushed:
    """Publish what is in `out`, and load it back.

    A merged model that is not there is made shard by shard and streamed (`stages.stream`).

    Args:
        stream: do not fetch the base whole either, but the shards of it that are not here, one by
            one. What is here (a local model, the Hub's cache) is used.

    Raises:
        SourceError, ContrastError: source or prompts have changed since `extract`.
        HubError: the licence forbids it, the verdict does and `yes` is not given, or the Hub.
        EvaluationError: there is nothing evaluated to publish.
    """
    target = target or Target()
    record = load_record(out)
    check_allowed(record, target)
    owner = target.namespace or namespace(token=runtime.token, endpoint=runtime.endpoint)
    base, source = Base.of_record(record), record.source
    repos = repositories(base, target, owner)
    parts = published_parts(base, target)
    for absent in target.parts:
        if absent not in parts:
            runtime.progress.note(f"No {absent} is published: {base.missing[absent]}.")
    refuse_lost_addition(record, parts, out)
    links = _links(repos, parts, target, runtime)
    wanted = reference(record, parts, out, runtime, stream=stream)
    home = out.resolve()
    folders: dict[str, Path] = {part: home / part for part in parts}
    gate = gate_prompt(base, target)
    origin = (source.repo, source.commit) if source.repo and source.commit else None
    ahead = None
    with ExitStack() as scratch:

        def scratch_folder(purpose: str) -> Path:
            name = home.with_name(f"{home.name}.{purpose}")
            return scratch.enter_context(staging(name)).folder

        if MERGED in folders and not folders[MERGED].is_dir():
            assert wanted.source is not None  # collected for this
            folders[MERGED] = scratch_folder("stream")
            ahead = _ahead(repos[MERGED], target, origin, runtime)
            record = stream_merged(record, out, wanted.source, folders[MERGED], ahead, runtime)
            write_card(out, MERGED, folders[MERGED], links, gate_prompt=gate)
        write_cards(out, links, gate_prompt=gate)
        if SPACE in folders:
            write_space(out, folders[SPACE], record, links)
            carry_legal(record, out, folders[SPACE])
        published: dict[str, Published] = {}
        with runtime.progress.stage("Publishing", len(folders)) as advance:
            for part, folder in folders.items():
                published[part] = publish(
                    # The Space's folder was made just now.
                    folder if part == SPACE else published_files(record, part, folder),
                    repo_id=repos[part],
                    kind=repo_type(part),
                    private=not target.public,
                    gated=None if part == SPACE else target.gated,
                    create_pr=target.create_pr,
                    token=runtime.token,
                    endpoint=runtime.endpoint,
                    commit_message=f"abl-hub: {record.direction.behaviour} direction "
                    + ("added" if record.recipe.induce else "removed"),
                    space_sdk="gradio" if part == SPACE else None,
                    origin=origin if part == MERGED else None,
                    ahead=ahead if part == MERGED else None,
                    progress=runtime.progress,
                )
                advance(1)
        loaded = load_back(record, folders, published, wanted, scratch_folder("load-back"), runtime)
    items = tuple(published.values())
    tags = {} if target.create_pr else _tag(items, runtime)
    collection = None
    if target.collection is not None:
        collection = collect(
            items,
            title=target.collection,
            base=source.repo,
            namespace=owner,
            private=not target.public,
            token=runtime.token,
            endpoint=runtime.endpoint,
        )
    return Pushed(published=items, loaded_back=loaded, tags=tags, collection=collection)


def _links(
    repos: Mapping[str, str], parts: Sequence[Part], target: Target, runtime: Runtime
) -> dict[str, str]:
    """The repositories that cards may name: pushed now, or there already for the same readers.

    Raises:
        HubError: a Space is to be published, and the delta that it loads is not there.
    """

    def is_there(part: str) -> bool:
        repo = Repository(
            repos[part], repo_type(part), token=runtime.token, endpoint=runtime.endpoint
        )
        with repo.translated():
            private = repo.is_private()
        return private is False or (private is True and not target.public)

    links = {part: repo for part, repo in repos.items() if part in parts or is_there(part)}
    if SPACE in parts and DELTA not in links:
        raise HubError(
            f"The Space would load {repos[DELTA]}, which is not there for its readers",
            next_step="Publish both: --only delta --only space",
        )
    return links


def _ahead(repo_id: str, target: Target, origin: tuple[str, str] | None, runtime: Runtime) -> Ahead:
    """A place for shards to go before their commit; a new repository is private."""
    repo = Repository(repo_id, "model", token=runtime.token, endpoint=runtime.endpoint)
    with repo.translated():
        repo.prepare(private=not target.public, create_pr=target.create_pr)
    copies = Origin(*origin, target=repo, progress=runtime.progress) if origin else None
    return Ahead(repo, create_pr=target.create_pr, origin=copies)


def _tag(items: Sequence[Published], runtime: Runtime) -> dict[str, str]:
    """Repository → tag. Not for proposals: a tag would keep them for ever."""
    name = f"abl-hub-{__version__}"
    return {
        item.repo: tag_commit(item, name, token=runtime.token, endpoint=runtime.endpoint)
        for item in items
    }
