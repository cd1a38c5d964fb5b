"""What a local Hub remembers: repositories, commits, blobs, collections; all of it on disk.

Knows nothing of HTTP or of who is asking. Every change is written (temporary sibling, then rename)
before the call returns, so a folder can be served again later. Secret values are never stored.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field

Kind = Literal["model", "dataset", "space"]

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.npz", "*.parquet", "*.zip", "*.gz")
LFS_THRESHOLD_BYTES = 10 * 2**20
"""Larger files are stored as LFS objects whatever their name, as on the Hub."""


def timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def git_oid(content: bytes) -> str:
    """The SHA-1 by which git names a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class File(BaseModel):
    """A file of a tree: `sha256` is set for LFS objects only."""

    oid: str
    size: int
    sha256: str | None = None


class Commit(BaseModel):
    tree: dict[str, File]
    parent: str | None
    title: str
    description: str
    author: str
    date: str


class Discussion(BaseModel):
    """A discussion, or a pull request, whose commits lie under `refs/pr/<number>`."""

    number: int
    title: str
    author: str
    date: str
    is_pull_request: bool
    status: Literal["open", "draft", "closed", "merged"] = "open"

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.number}"


class Space(BaseModel):
    """What only Spaces have. `secrets` holds names and dates, never values."""

    sdk: str
    stage: str = "NO_APP_FILE"
    hardware: str | None = None
    sleep_seconds: int | None = None
    secrets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    variables: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Repo(BaseModel):
    kind: Kind
    id: str
    private: bool
    gated: Literal["auto", "manual", False] = False
    created: str = Field(default_factory=timestamp)
    commits: dict[str, Commit] = Field(default_factory=dict)
    refs: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    discussions: list[Discussion] = Field(default_factory=list)
    objects: set[str] = Field(default_factory=set)
    """SHA-256s of the LFS objects that were uploaded to it or copied into it."""
    space: Space | None = None

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def branches(self) -> dict[str, str]:
        return {name: sha for name, sha in self.refs.items() if not name.startswith("refs/")}

    def resolve(self, revision: str | None) -> str | None:
        """The commit that a branch, tag, pull request ref or (abbreviated) hash names."""
        revision = revision or "main"
        named = self.refs.get(revision) or self.tags.get(revision)
        if named is not None:
            return named
        if not re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return None
        return next((sha for sha in self.commits if sha.startswith(revision)), None)

    def tree(self, revision: str | None = None) -> dict[str, File]:
        """The files at `revision`, which must exist."""
        sha = self.resolve(revision)
        if sha is None:
            raise KeyError(revision)
        return self.commits[sha].tree

    def history(self, sha: str) -> Iterator[tuple[str, Commit]]:
        """Commits from `sha` back to the first."""
        at: str | None = sha
        while at is not None:
            yield at, self.commits[at]
            at = self.commits[at].parent

    def commit(
        self, tree: dict[str, File], *, title: str, author: str, ref: str, description: str = ""
    ) -> str:
        """Add a commit on top of `ref` and move it there."""
        parent = self.refs.get(ref)
        seed = json.dumps([self.kind, self.id, parent, title, time.time_ns(), sorted(tree)])
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = Commit(
            tree=tree,
            parent=parent,
            title=title,
            description=description,
            author=author,
            date=timestamp(),
        )
        self.refs[ref] = sha
        if self.space is not None and ref == "main" and "app.py" in tree:
            self.space.stage = "RUNNING"
        return sha

    def open_discussion(self, *, title: str, author: str, pull_request: bool) -> Discussion:
        number = len(self.discussions) + 1
        opened = Discussion(
            number=number,
            title=title,
            author=author,
            date=timestamp(),
            is_pull_request=pull_request,
        )
        self.discussions.append(opened)
        if pull_request:
            self.refs[opened.ref] = self.refs["main"]
        return opened


class Collection(BaseModel):
    slug: str
    title: str
    owner: str
    description: str | None
    private: bool
    updated: str = Field(default_factory=timestamp)
    items: list[dict[str, Any]] = Field(default_factory=list)


class Store:
    """Everything under one folder: `repos/`, `collections/`, `git/` and `lfs/` (blobs by hash)."""

    def __init__(self, root: Path, *, chunked: bool = True) -> None:
        self.root, self.chunked = root, chunked
        for name in ("repos", "collections", "git", "lfs", "incoming"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[Kind, str], Repo] = {}
        for path in sorted((root / "repos").glob("*.json")):
            repo = Repo.model_validate_json(path.read_text(encoding="utf-8"))
            self.repos[repo.kind, repo.id] = repo
        self.collections: dict[str, Collection] = {}
        for path in sorted((root / "collections").glob("*.json")):
            collection = Collection.model_validate_json(path.read_text(encoding="utf-8"))
            self.collections[collection.slug] = collection

    def create(
        self, kind: Kind, repo_id: str, *, private: bool, sdk: str | None = None, author: str
    ) -> Repo:
        repo = Repo(kind=kind, id=repo_id, private=private)
        if kind == "space":
            repo.space = Space(sdk=sdk or "gradio")
        attributes = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS)
        tree = {".gitattributes": self.add_git_blob(attributes.encode())}
        repo.commit(tree, title="initial commit", author=author, ref="main")
        self.repos[kind, repo_id] = repo
        self.save(repo)
        return repo

    def delete(self, repo: Repo) -> None:
        del self.repos[repo.kind, repo.id]
        self._path("repos", f"{repo.kind}/{repo.id}").unlink()

    def delete_collection(self, collection: Collection) -> None:
        del self.collections[collection.slug]
        self._path("collections", collection.slug).unlink()

    def save(self, value: Repo | Collection) -> None:
        if isinstance(value, Repo):
            path = self._path("repos", f"{value.kind}/{value.id}")
        else:
            path = self._path("collections", value.slug)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(value.model_dump_json(), encoding="utf-8")
        temporary.replace(path)

    def add_git_blob(self, content: bytes) -> File:
        oid = git_oid(content)
        path = self.root / "git" / oid
        if not path.exists():
            temporary = self.root / "incoming" / oid
            temporary.write_bytes(content)
            temporary.replace(path)
        return File(oid=oid, size=len(content))

    def lfs_path(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError("not a SHA-256")
        return self.root / "lfs" / sha256

    def lfs_file(self, sha256: str) -> File | None:
        """The tree entry of an uploaded LFS object, None when it was not uploaded."""
        path = self.lfs_path(sha256)
        if not path.exists():
            return None
        size = path.stat().st_size
        return File(oid=git_oid(lfs_pointer(sha256, size)), size=size, sha256=sha256)

    def content_path(self, file: File) -> Path:
        return self.lfs_path(file.sha256) if file.sha256 else self.root / "git" / file.oid

    def card(self, tree: dict[str, File]) -> dict[str, Any]:
        """The metadata of the card: the YAML front matter of README.md, {} without one."""
        if "README.md" not in tree:
            return {}
        text = self.content_path(tree["README.md"]).read_text(encoding="utf-8")
        return front_matter(text) or {}

    def _path(self, folder: str, name: str) -> Path:
        return self.root / folder / (name.replace("/", "--") + ".json")


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of an LFS object."""
    head = "version https://git-lfs.github.com/spec/v1"
    return f"{head}\noid sha256:{sha256}\nsize {size}\n".encode()


def front_matter(text: str) -> dict[str, Any] | None:
    """The YAML block that opens a card, None without one.

    Raises:
        yaml.YAMLError: the block is not YAML.
    """
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if match is None:
        return None
    block: dict[str, Any] | None = yaml.safe_load(match[1])
    return block or {}
