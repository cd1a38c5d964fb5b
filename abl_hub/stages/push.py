"""Stage 5: merged model, delta and Space, each one atomic commit, private by default.

Done is what was loaded back from the Hub and found to be what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from abl_hub import __version__
from abl_hub.hub.account import namespace
from abl_hub.hub.collect import collect, tag_commit
from abl_hub.hub.publish import Published, publish
from abl_hub.report.record import load_record
from abl_hub.stages.card import write_cards
from abl_hub.stages.legal import carry_legal
from abl_hub.stages.load_back import LoadedBack, load_back, reference
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.space import write_space
from abl_hub.stages.target import SPACE, Target, check_allowed, gate_prompt, repositories


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


def push(out: Path, runtime: Runtime, target: Target | None = None) -> Pushed:
    """Publish what is in `out`, and load it back.

    Raises:
        SourceError, ContrastError: source or prompts have changed since `extract`.
        HubError: the licence forbids it, the verdict does and `yes` is not given, or the Hub.
        EvaluationError: there is nothing evaluated to publish.
    """
    target = target or Target()
    record = load_record(out)
    check_allowed(record, target)
    owner = target.namespace or namespace(token=runtime.token, endpoint=runtime.endpoint)
    repos = repositories(record, target, owner)
    wanted = reference(record, target.parts, out, runtime)
    write_cards(out, repos, gate_prompt=gate_prompt(record, target))
    if SPACE in target.parts:
        write_space(out, out / SPACE, record, repos)
        carry_legal(record, out, out / SPACE)
    published: dict[str, Published] = {}
    with runtime.progress.stage("Publishing", len(target.parts)) as advance:
        for part in target.parts:
            published[part] = publish(
                out / part,
                repo_id=repos[part],
                kind="space" if part == SPACE else "model",
                private=not target.public,
                gated=None if part == SPACE else target.gated,
                create_pr=target.create_pr,
                token=runtime.token,
                endpoint=runtime.endpoint,
                commit_message=f"abl-hub: {record.direction.behaviour} direction removed",
                space_sdk="gradio" if part == SPACE else None,
                progress=runtime.progress,
            )
            advance(1)
    loaded = load_back(out, published, wanted, runtime)
    items = tuple(published.values())
    tags: dict[str, str] = {}
    if not target.create_pr:  # a tag on a proposal would keep it for ever
        for item in items:
            tags[item.repo] = tag_commit(
                item, f"abl-hub-{__version__}", token=runtime.token, endpoint=runtime.endpoint
            )
    collection = None
    if target.collection is not None:
        collection = collect(
            items,
            title=target.collection,
            base=record.source.repo,
            namespace=owner,
            private=not target.public,
            token=runtime.token,
            endpoint=runtime.endpoint,
        )
    return Pushed(published=items, loaded_back=loaded, tags=tags, collection=collection)
