"""Files to a Hub repository: one atomic commit, private unless public is asked for.

Knows commits, visibility and gating; does not know what the files are, except that a pickle or the
user's token is never among them. Publishing the same files again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
)
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from abl_hub.errors import HubError
from abl_hub.hub.bars import client_bars_silenced
from abl_hub.hub.failures import LOG_IN, translated
from abl_hub.hub.retry import Backoff
from abl_hub.progress import SILENT, Advance, Progress

Kind = Literal["model", "dataset", "space"]
Gate = Literal["auto", "manual"]

MANIFEST = ".abl-hub-files.json"
"""Lists what was published, so that a later push deletes its own leftovers and nothing else."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LARGE = (".safetensors",)
_README = "README.md"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where something is now.

    Args:
        commit: the repository's commit with exactly these files (of the pull request, if one).
        url: to show to the user.
        changed: whether this call made a commit; False: everything was there already.
        files: paths in the repository, sorted.
    """

    repo: str
    kind: Kind
    commit: str
    url: str
    private: bool
    changed: bool
    files: tuple[str, ...]


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


def namespace(*, token: str | None = None, endpoint: str | None = None) -> str:
    """The user whom the token belongs to.

    Raises:
        HubError: no token, an invalid one, or the Hub could not be reached.
    """
    if not (token or get_token()):
        raise HubError("Publishing needs a Hub account", why="there is no token", next_step=LOG_IN)
    api = HfApi(endpoint=endpoint, token=token)
    with translated("", endpoint=api.endpoint):
        name: str = Backoff().run(api.whoami)["name"]
    return name


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

    Raises:
        HubError: no permission, a public repository where a private one is asked for, invalid
            metadata in README.md, a pickle or the token among the files, or the Hub failed.
    """
    push = _Push(
        repo_id, kind, files, token=token, endpoint=endpoint, backoff=backoff, progress=progress
    )
    if gated is not None and kind == "space":
        raise HubError(f"{repo_id} cannot be gated", why="the Hub gates models and data sets only")
    with push.translated(), client_bars_silenced():
        push.check_card()
        was_private = push.prepare(private=private, create_pr=create_pr, space_sdk=space_sdk)
        with progress.stage(f"Uploading {repo_id}", push.size_bytes) as advance:
            commit, changed, url = push.commit(commit_message, create_pr=create_pr, advance=advance)
        push.verify(commit)
        if not create_pr:
            push.settle(gated=gated, make_public=was_private and not private)
    return Published(
        repo=repo_id,
        kind=kind,
        commit=commit,
        url=url,
        private=was_private and (private or create_pr),
        changed=changed,
        files=tuple(sorted(push.local)),
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
    push = _Push(repo_id, kind, files, token=token, endpoint=endpoint)
    with push.translated():
        exists = push.existing_is_private(private=private) is not None
        head = push.head() if exists else ""
        remote = push.remote_files(head) if exists else {}
        changes, delete = push.changes(remote), push.leftovers(remote, head)
    return PublishPlan(
        repo=repo_id,
        kind=kind,
        exists=exists,
        private=private,
        add=tuple((path, push.local[path].upload_info.size) for path in changes),
        delete=tuple(delete),
        unchanged=len(push.local) - len(changes),
    )


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


class _Push:
    """One set of files on its way to one repository; every step can be repeated."""

    def __init__(
        self,
        repo: str,
        kind: Kind,
        files: Path | Mapping[str, Path],
        *,
        token: str | None,
        endpoint: str | None,
        backoff: Backoff | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.repo, self.kind, self.progress = repo, kind, progress
        self.api = HfApi(endpoint=endpoint, token=token)
        self.backoff = backoff or Backoff()
        self.uploaded: dict[str, int] = {}  # path → bytes, of what was sent ahead of the commit
        paths = _collect(files)
        _refuse_token(paths, token or get_token())
        manifest = json.dumps({"files": sorted(paths)}, indent=1).encode() + b"\n"
        self.local = {
            path: CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file))
            for path, file in paths.items()
        }
        self.local[MANIFEST] = CommitOperationAdd(MANIFEST, manifest)

    @property
    def size_bytes(self) -> int:
        return sum(operation.upload_info.size for operation in self.local.values())

    @property
    def url(self) -> str:
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{self.api.endpoint}/{prefix}{self.repo}"

    @contextmanager
    def translated(self) -> Iterator[None]:
        with translated(self.repo, kind=self.kind, endpoint=self.api.endpoint):
            yield

    def check_card(self) -> None:
        """Let the Hub judge the metadata before anything is made or uploaded."""
        if _README not in self.local:
            return
        with self.local[_README].as_file() as opened:
            content = opened.read().decode("utf-8")

        def validate() -> None:
            url = f"{self.api.endpoint}/api/validate-yaml"
            answer = get_session().post(url, json={"content": content, "repoType": self.kind})
            try:
                hf_raise_for_status(answer)
            except BadRequestError as error:
                told = answer.json().get("errors", [])
                raise HubError(
                    f"The card of {self.repo} has metadata that the Hub does not accept",
                    why="; ".join(str(one.get("message")) for one in told),
                    next_step="Correct the front matter of README.md",
                ) from error

        self.backoff.run(validate)

    def existing_is_private(self, *, private: bool) -> bool | None:
        """Whether the repository is private; None: there is none.

        Raises:
            HubError: it is public and a private one is asked for.
        """

        def look() -> bool | None:
            try:
                return bool(self.api.repo_info(self.repo, repo_type=self.kind).private)
            except RepositoryNotFoundError:
                return None

        found = self.backoff.run(look)
        if found is False and private:
            raise HubError(
                f"{self.repo} is public",
                why="publishing is private unless asked otherwise",
                next_step="Pass --public to publish there, or choose another name",
            )
        return found

    def prepare(self, *, private: bool, create_pr: bool, space_sdk: str | None) -> bool:
        """Have a repository to commit to; whether it is private now."""
        is_private = self.existing_is_private(private=private)
        if is_private is not None:
            return is_private
        if create_pr:
            raise HubError(
                f"There is no {self.kind} {self.repo} to open a pull request on",
                next_step="Publish without --create-pr to make it",
            )
        sdk = (space_sdk or "gradio") if self.kind == "space" else None

        def create() -> bool:
            try:
                self.api.create_repo(self.repo, repo_type=self.kind, private=True, space_sdk=sdk)
            except HfHubHTTPError as error:
                # An earlier try may have made it though its answer was lost.
                if error.response.status_code != 409 or not self.existing_is_private(private=True):
                    raise
            return True

        return self.backoff.run(create)

    def commit(self, message: str, *, create_pr: bool, advance: Advance) -> tuple[str, bool, str]:
        """Commit what differs: (commit, whether one was made, address).

        Repeated after a failure, it looks at the repository again. So a commit whose answer was
        lost is found, not repeated, and a commit by someone else in between is built upon.
        """
        first_head = self.backoff.run(self.head)
        proposed = self.backoff.run(self.same_proposals) if create_pr else {}

        def attempt() -> tuple[str, bool, str]:
            head = self.head()
            remote = self.remote_files(head)
            changes, leftovers = self.changes(remote), self.leftovers(remote, head)
            if not changes and not leftovers:
                return head, head != first_head, self.url
            if create_pr:
                for commit, url in (proposed or self.same_proposals()).items():
                    return commit, commit not in proposed, url
            self.preupload(
                [self.local[path] for path in changes], create_pr=create_pr, advance=advance
            )
            done = self.api.create_commit(
                self.repo,
                [self.local[path] for path in changes]
                + [CommitOperationDelete(path) for path in leftovers],
                commit_message=message,
                repo_type=self.kind,
                create_pr=create_pr,
                parent_commit=head,
            )
            return done.oid, True, done.pr_url or self.url

        done = self.backoff.run(attempt)
        advance(self.size_bytes - sum(self.uploaded.values()))
        return done

    def preupload(
        self, additions: list[CommitOperationAdd], *, create_pr: bool, advance: Advance
    ) -> None:
        """Upload large files one by one; the Hub shows none of them before the commit.

        What an earlier attempt uploaded is not sent again.
        """
        for operation in additions:
            path = operation.path_in_repo
            if path.endswith(_LARGE) and path not in self.uploaded:
                self.api.preupload_lfs_files(
                    self.repo,
                    [operation],
                    repo_type=self.kind,
                    create_pr=create_pr,
                    num_threads=1,
                    free_memory=False,
                )
                self.uploaded[path] = operation.upload_info.size
                advance(self.uploaded[path])

    def head(self) -> str:
        info = self.api.repo_info(self.repo, repo_type=self.kind, revision="main")
        if info.sha is None:
            raise HubError(f"{self.repo} has no commit")
        return info.sha

    def remote_files(self, revision: str) -> dict[str, RepoFile]:
        listed = self.api.list_repo_tree(
            self.repo, repo_type=self.kind, revision=revision, recursive=True
        )
        return {file.path: file for file in listed if isinstance(file, RepoFile)}

    def changes(self, remote: Mapping[str, RepoFile]) -> list[str]:
        """Paths that the repository does not hold with this content, sorted."""
        return [
            path
            for path, operation in sorted(self.local.items())
            if path not in remote or not _same(operation, remote[path])
        ]

    def leftovers(self, remote: Mapping[str, RepoFile], revision: str) -> list[str]:
        """Paths that an earlier push put there and this one does not have."""
        if MANIFEST not in remote or _same(self.local[MANIFEST], remote[MANIFEST]):
            return []
        with tempfile.TemporaryDirectory() as scratch:
            path = self.api.hf_hub_download(
                self.repo, MANIFEST, repo_type=self.kind, revision=revision, local_dir=scratch
            )
            ours = json.loads(Path(path).read_bytes())["files"]
        return sorted(path for path in set(ours) - set(self.local) if path in remote)

    def same_proposals(self) -> dict[str, str]:
        """Open pull requests that already hold exactly these files: commit → address."""
        found = {}
        for discussion in self.api.get_repo_discussions(
            self.repo,
            repo_type=self.kind,
            discussion_type="pull_request",
            discussion_status="open",
        ):
            reference = discussion.git_reference or ""
            info = self.api.repo_info(self.repo, repo_type=self.kind, revision=reference)
            if not self.changes(self.remote_files(reference)) and info.sha:
                found[info.sha] = discussion.url
        return found

    def verify(self, commit: str) -> None:
        """Hold the repository to what was sent.

        Raises:
            HubError: a file is missing or differs (a .gitignore there can make the Hub drop files).
        """
        wrong = self.changes(self.backoff.run(lambda: self.remote_files(commit)))
        if wrong:
            raise HubError(
                f"{self.repo} does not hold what was sent",
                why=f"{', '.join(wrong[:3])} differ at commit {commit[:8]}",
                next_step=f"Look for a .gitignore at {self.url}, and push again",
            )

    def settle(self, *, gated: Gate | None, make_public: bool) -> None:
        """Gate, then open: in this order, so that nobody gets in between."""

        def apply() -> None:
            info = self.api.repo_info(self.repo, repo_type=self.kind)
            if gated is not None and getattr(info, "gated", None) != gated:
                self.api.update_repo_settings(self.repo, repo_type=self.kind, gated=gated)
            if make_public and info.private:
                self.api.update_repo_settings(self.repo, repo_type=self.kind, private=False)

        self.backoff.run(apply)


def _collect(files: Path | Mapping[str, Path]) -> dict[str, Path]:
    """Path in the repository → file.

    Raises:
        HubError: nothing to publish, or a file that must not be.
    """
    if isinstance(files, Path):
        relative = {path.relative_to(files): path for path in files.rglob("*") if path.is_file()}
        found = {
            inside.as_posix(): path
            for inside, path in relative.items()
            if not any(part.startswith(".") for part in inside.parts)
        }
    else:
        found = dict(files)
    if not found:
        raise HubError(f"There is nothing to publish in {files}")
    pickles = sorted(path for path in found if path.endswith(_PICKLES))
    if pickles:
        raise HubError(
            f"{pickles[0]} is not published",
            why="reading a pickle can run code",
            next_step="Save the weights as safetensors",
        )
    return found


def _refuse_token(files: Mapping[str, Path], token: str | None) -> None:
    """Refuse files that hold the user's token. Weights are not searched."""
    if not token:
        return
    for path, file in files.items():
        if not path.endswith(_LARGE) and token.encode() in file.read_bytes():
            raise HubError(
                f"{path} is not published",
                why="it holds your Hub token",
                next_step="Remove it from the file, and renew the token if the file was shared",
            )


def _same(operation: CommitOperationAdd, remote: RepoFile) -> bool:
    """Whether a file on the Hub has this content: by SHA-256 for LFS, by git's hash otherwise."""
    info = operation.upload_info
    if info.size != remote.size:
        return False
    if remote.lfs is not None:
        return info.sha256.hex() == remote.lfs.sha256
    with operation.as_file() as opened:
        content = opened.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id
