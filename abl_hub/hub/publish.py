"""Files to a Hub repository: one atomic commit, private unless public is asked for.

Knows what differs and how to commit it; does not know what the files are. Publishing the same
files again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationCopy, CommitOperationDelete, get_token
from huggingface_hub.hf_api import RepoFile

from abl_hub.errors import HubError
from abl_hub.hub.ahead import Ahead
from abl_hub.hub.bars import client_bars_silenced
from abl_hub.hub.copies import Origin
from abl_hub.hub.payload import MANIFEST, Payload, is_large
from abl_hub.hub.repository import Gate, Kind, Repository
from abl_hub.hub.retry import Backoff
from abl_hub.progress import SILENT, Advance, Progress

_README = "README.md"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where something is now.

    Args:
        commit: the repository's commit with exactly these files (of the pull request, if one).
        url: to show to the user.
        changed: whether this call made a commit; False: everything was there already.
        files: paths in the repository, sorted.
        copied: those that this call had the Hub copy by itself.
    """

    repo: str
    kind: Kind
    commit: str
    url: str
    private: bool
    changed: bool
    files: tuple[str, ...]
    copied: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PublishPlan:
    """What `publish` would do: `add` holds (path, bytes) of new and changed files."""

    repo: str
    kind: Kind
    exists: bool
    private: bool
    add: tuple[tuple[str, int], ...]
    delete: tuple[str, ...]
    unchanged: int

    @property
    def upload_bytes(self) -> int:
        return sum(size for _, size in self.add)


def publish(
    files: Path | Mapping[str, Path],
    *,
    repo_id: str,
    kind: Kind,
    private: bool = True,
    gated: Gate | None = None,
    create_pr: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    commit_message: str,
    space_sdk: str | None = None,
    origin: tuple[str, str] | None = None,
    ahead: Ahead | None = None,
    progress: Progress = SILENT,
    backoff: Backoff | None = None,
) -> Published:
    """Make a repository hold exactly these files, beside what others put there.

    A new repository is made private, filled, gated, and only then made public: nobody sees half of
    it. Interrupted, it can simply be repeated.

    Args:
        files: a folder (hidden files are left out), or path in the repository → file.
        private: False makes the repository public at the end, also one that was private.
        create_pr: propose the commit to a repository that exists. An open pull request with the
            same content is taken instead of a new one.
        origin: a model repository and commit from which the Hub may copy files that are the same.
        ahead: files that were uploaded already, for this commit; then it knows the origin.

    Raises:
        HubError: no permission, a public repository where a private one is asked for, invalid
            metadata in README.md, a pickle or the token among the files, or the Hub failed.
    """
    if gated is not None and kind == "space":
        raise HubError(f"{repo_id} cannot be gated", why="the Hub gates models and data sets only")
    repo = Repository(repo_id, kind, token=token, endpoint=endpoint, backoff=backoff)
    if ahead is None:
        copies = Origin(*origin, target=repo, progress=progress) if origin else None
        ahead = Ahead(repo, create_pr=create_pr, origin=copies)
    payload = Payload(files, token=token or get_token(), ahead=ahead.items)
    with repo.translated(), client_bars_silenced():
        card = payload.text(_README)
        if card is not None:
            repo.check_card(card)
        was_private = repo.prepare(private=private, create_pr=create_pr, space_sdk=space_sdk)
        push = _Push(repo, payload, ahead)
        with progress.stage(f"Uploading {repo_id}", payload.size_bytes) as advance:
            commit, changed, url = push.commit(commit_message, advance)
        push.verify(commit)
        if not create_pr:
            repo.settle(gated=gated, make_public=was_private and not private)
    return Published(
        repo=repo_id,
        kind=kind,
        commit=commit,
        url=url,
        private=was_private and (private or create_pr),
        changed=changed,
        files=payload.paths,
        copied=payload.copied if changed else (),
    )


def plan_publish(
    files: Path | Mapping[str, Path],
    *,
    repo_id: str,
    kind: Kind,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> PublishPlan:
    """What `publish` would do; changes nothing.

    Raises:
        HubError: as `publish` would before it uploads.
    """
    repo = Repository(repo_id, kind, token=token, endpoint=endpoint)
    payload = Payload(files, token=token or get_token())
    push = _Push(repo, payload, Ahead(repo))
    with repo.translated():
        exists = repo.existing_is_private(private=private) is not None
        head = repo.head() if exists else ""
        remote = repo.remote_files(head) if exists else {}
        changes, delete = payload.changes(remote), push.leftovers(remote, head)
    return PublishPlan(
        repo=repo_id,
        kind=kind,
        exists=exists,
        private=private,
        add=tuple((path, payload.items[path].size) for path in changes),
        delete=tuple(delete),
        unchanged=len(payload.paths) - len(changes),
    )


class _Push:
    """A payload on its way into one commit; every step can be repeated."""

    def __init__(self, repo: Repository, payload: Payload, ahead: Ahead) -> None:
        self.repo, self.payload, self.ahead = repo, payload, ahead
        self.create_pr = ahead.create_pr

    def commit(self, message: str, advance: Advance) -> tuple[str, bool, str]:
        """Commit what differs: (commit, whether one was made, address).

        Repeated after a failure, it looks at the repository again. So a commit whose answer was
        lost is found, not repeated, and a commit by someone else in between is built upon.
        """
        repo, items = self.repo, self.payload.items
        first_head = repo.backoff.run(repo.head)
        proposed = repo.backoff.run(self.same_proposals) if self.create_pr else {}

        uploaded = 0

        def attempt() -> tuple[str, bool, str]:
            nonlocal uploaded
            head = repo.head()
            remote = repo.remote_files(head)
            changes, leftovers = self.payload.changes(remote), self.leftovers(remote, head)
            if not changes and not leftovers:
                return head, head != first_head, repo.url
            if self.create_pr:
                for commit, url in (proposed or self.same_proposals()).items():
                    return commit, commit not in proposed, url
            for path in filter(is_large, changes):
                item = items[path]
                if isinstance(item.operation, CommitOperationCopy):
                    continue
                copy = self.ahead.copy(path, item.sha256, item.size)
                if copy is not None:
                    self.payload.copy(path, copy)
                elif self.ahead.send(item.operation):
                    uploaded += item.size
                    advance(item.size)
            done = repo.api.create_commit(
                repo.name,
                [items[path].operation for path in changes]
                + [CommitOperationDelete(path) for path in leftovers],
                commit_message=message,
                repo_type=repo.kind,
                create_pr=self.create_pr,
                parent_commit=head,
            )
            return done.oid, True, done.pr_url or repo.url

        done = repo.backoff.run(attempt)
        advance(self.payload.size_bytes - uploaded)
        return done

    def leftovers(self, remote: Mapping[str, RepoFile], revision: str) -> list[str]:
        """Paths that an earlier push put there and this one does not have."""
        if MANIFEST not in remote or self.payload.is_in(remote, MANIFEST):
            return []
        ours = self.repo.json_file(MANIFEST, revision)["files"]
        return sorted(path for path in set(ours) - set(self.payload.paths) if path in remote)

    def same_proposals(self) -> dict[str, str]:
        """Open pull requests that already hold exactly these files: commit → address."""
        return {
            commit: url
            for reference, commit, url in self.repo.proposals()
            if not self.payload.changes(self.repo.remote_files(reference))
        }

    def verify(self, commit: str) -> None:
        """Hold the repository to what was sent.

        Raises:
            HubError: a file is missing or differs (a .gitignore there can make the Hub drop files).
        """
        remote = self.repo.backoff.run(lambda: self.repo.remote_files(commit))
        wrong = self.payload.changes(remote)
        if wrong:
            raise HubError(
                f"{self.repo.name} does not hold what was sent",
                why=f"{', '.join(wrong[:3])} differ at commit {commit[:8]}",
                next_step=f"Look for a .gitignore at {self.repo.url}, and push again",
            )
