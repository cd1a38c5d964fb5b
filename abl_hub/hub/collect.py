"""Names around what was published: a tag on its commit, a collection that ties it to its base.

Both can be repeated: what is there already stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from huggingface_hub import Collection, HfApi
from huggingface_hub.errors import HfHubHTTPError

from abl_hub.hub.failures import translated
from abl_hub.hub.publish import Published
from abl_hub.hub.repository import Kind
from abl_hub.hub.retry import Backoff


def tag_commit(
    published: Published,
    name: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    backoff: Backoff | None = None,
) -> str:
    """Name a published commit `name`, or `name-2`, … where that names an earlier one; its tag.

    A tag never moves: who pinned it keeps what they had.
    """
    api = HfApi(endpoint=endpoint, token=token)

    def attempt() -> str:
        refs = api.list_repo_refs(published.repo, repo_type=published.kind)
        taken = {tag.name: tag.target_commit for tag in refs.tags}
        names = (name if count == 1 else f"{name}-{count}" for count in itertools.count(1))
        chosen = next(one for one in names if taken.get(one, published.commit) == published.commit)
        if chosen not in taken:
            api.create_tag(
                published.repo,
                tag=chosen,
                revision=published.commit,
                repo_type=published.kind,
            )
        return chosen

    with translated(published.repo, kind=published.kind, endpoint=api.endpoint):
        return (backoff or Backoff()).run(attempt)


def collect(
    published: Sequence[Published],
    *,
    title: str,
    base: str | None = None,
    namespace: str | None = None,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    backoff: Backoff | None = None,
) -> str:
    """Tie a base model and what was made of it together in a collection; its address.

    Args:
        namespace: user or organisation that the collection belongs to; None: the token's user.

    Calling it again adds what is missing and repeats nothing.
    """
    api = HfApi(endpoint=endpoint, token=token)
    items: list[tuple[str, Kind]] = [(base, "model")] if base else []
    items += [(item.repo, item.kind) for item in published]
    patience = backoff or Backoff()

    def create() -> Collection:
        try:
            return api.create_collection(title, namespace=namespace, private=private)
        except HfHubHTTPError as error:
            # A conflict that names the collection says that it is there already.
            slug = _conflict(error).get("slug")
            if slug is None:
                raise
            return api.get_collection(slug)

    def add(slug: str, repo: str, kind: Kind) -> None:
        try:
            api.add_collection_item(slug, repo, kind)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            if repo not in {item.item_id for item in api.get_collection(slug).items}:
                raise

    with translated("", endpoint=api.endpoint):
        made = patience.run(create)
        held = {(item.item_id, item.item_type) for item in made.items}
        for repo, kind in items:
            if (repo, kind) not in held:
                patience.run(partial(add, made.slug, repo, kind))
    return made.url


def _conflict(error: HfHubHTTPError) -> dict[str, Any]:
    """What the Hub says about a conflict; empty if it is none."""
    if error.response.status_code != 409:
        return {}
    content = error.response.json()
    return content if isinstance(content, dict) else {}
