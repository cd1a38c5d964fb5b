"""Names around what was published: a tag on its commit, a collection that ties it to its base.

Both can be repeated: what is there already stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from huggingface_hub import HfApi

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
    with translated("", endpoint=api.endpoint):
        made = patience.run(
            lambda: api.create_collection(
                title, namespace=namespace, private=private, exists_ok=True
            )
        )
        for repo, kind in items:
            patience.run(
                lambda repo=repo, kind=kind: api.add_collection_item(  # type: ignore[misc]
                    made.slug, repo, kind, exists_ok=True
                )
            )
    return made.url
