"""Names around what was published: a tag on its commit, a collection that ties it to its base.

Both can be repeated: what is there already stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import HfApi

from abl_hub.hub.failures import translated
from abl_hub.hub.publish import Published
from abl_hub.hub.repository import Kind
from abl_hub.hub.retry import Backoff


def tag_commit(
    published: Published, tag: str, *, token: str | None = None, endpoint: str | None = None
) -> None:
    """Name a published commit. A tag that is there already stays where it is."""
    api = HfApi(endpoint=endpoint, token=token)
    with translated(published.repo, kind=published.kind, endpoint=api.endpoint):
        Backoff().run(
            lambda: api.create_tag(
                published.repo,
                tag=tag,
                revision=published.commit,
                repo_type=published.kind,
                exist_ok=True,
            )
        )


def collect(
    published: Sequence[Published],
    *,
    title: str,
    base: str | None = None,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Tie a base model and what was made of it together in a collection; its address.

    Calling it again adds what is missing and repeats nothing.
    """
    api = HfApi(endpoint=endpoint, token=token)
    items: list[tuple[str, Kind]] = [(base, "model")] if base else []
    items += [(item.repo, item.kind) for item in published]
    backoff = Backoff()
    with translated("", endpoint=api.endpoint):
        made = backoff.run(lambda: api.create_collection(title, private=private, exists_ok=True))
        for repo, kind in items:
            backoff.run(
                lambda repo=repo, kind=kind: api.add_collection_item(  # type: ignore[misc]
                    made.slug, repo, kind, exists_ok=True
                )
            )
    return made.url
