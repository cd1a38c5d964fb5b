"""Answers that change nothing: who am I, information, trees, files, history."""

from __future__ import annotations

import hashlib
import urllib.parse
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from abl_hub.hub.local.access import (
    KINDS,
    Hub,
    Refused,
    check_gate,
    commit_of,
    file_entry,
    hub_of,
    readable_repo,
    signed_in,
)
from abl_hub.hub.local.store import Repo


async def whoami(request: Request) -> Response:
    known = signed_in(request)
    token = {"displayName": "local", "role": known.role}
    return JSONResponse(
        {
            "type": "user",
            "id": known.user,
            "name": known.user,
            "fullname": known.user,
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


async def info(request: Request) -> Response:
    repo = readable_repo(request)
    sha = commit_of(request, repo)
    return JSONResponse(_info(hub_of(request), repo, sha, blobs="blobs" in request.query_params))


async def auth_check(request: Request) -> Response:
    check_gate(request, readable_repo(request))
    return JSONResponse({})


async def list_repos(request: Request) -> Response:
    """All repositories of a kind that are public, or private and the caller's own."""
    hub = hub_of(request)
    kind = KINDS.get(request.path_params["kind"])
    if kind is None:  # the client asks for lists of other things, too, and lives without them
        raise Refused(404, "Not found")
    user = signed_in(request).user if "authorization" in request.headers else None
    author = request.query_params.get("author")
    shown = [
        _info(hub, repo, repo.refs["main"], blobs=False)
        for (of_kind, _), repo in sorted(hub.store.repos.items())
        if of_kind == kind and author in (None, repo.owner)
        if not repo.private or repo.owner == user
    ]
    return JSONResponse(shown)


async def tree(request: Request) -> Response:
    repo = readable_repo(request)
    files = repo.commits[commit_of(request, repo)].tree
    folder = urllib.parse.unquote(request.path_params.get("path", "")).strip("/")
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in files.items() if path.startswith(prefix)}
    if prefix and not inside:
        raise Refused(404, f"{folder} does not exist", code="EntryNotFound")
    recursive = request.query_params.get("recursive", "").lower() == "true"
    folders: set[str] = set()
    entries: list[dict[str, Any]] = []
    for path, file in sorted(inside.items()):
        parents = path.removeprefix(prefix).split("/")[:-1]
        shown = range(1, len(parents) + 1) if recursive else range(1, min(1, len(parents)) + 1)
        folders |= {prefix + "/".join(parents[:depth]) for depth in shown}
        if recursive or not parents:
            entries.append(file_entry(path, file))
    return JSONResponse([_folder_entry(path) for path in sorted(folders)] + entries)


async def paths_info(request: Request) -> Response:
    repo = readable_repo(request)
    files = repo.commits[commit_of(request, repo)].tree
    async with request.form() as form:
        asked = [str(path) for path in form.getlist("paths")]
    entries = []
    for path in asked:
        if path in files:
            entry = file_entry(path, files[path])
            if files[path].sha256 and hub_of(request).store.chunked:
                # The client copies files between repositories only where it sees a Xet hash. It is
                # shown nowhere else, because there is no Xet store here to download from.
                entry["xetHash"] = files[path].sha256
            entries.append(entry)
        elif any(other.startswith(path.rstrip("/") + "/") for other in files):
            entries.append(_folder_entry(path))
    return JSONResponse(entries)


async def commits(request: Request) -> Response:
    repo = readable_repo(request)
    return JSONResponse(
        [
            {
                "id": sha,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for sha, commit in repo.history(commit_of(request, repo))
        ]
    )


async def refs(request: Request) -> Response:
    repo = readable_repo(request)

    def listed(named: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": prefix + n, "targetCommit": sha} for n, sha in named.items()]

    answer = {
        "branches": listed(repo.branches, "refs/heads/"),
        "tags": listed(repo.tags, "refs/tags/"),
        "converts": [],
    }
    if "include_prs" in request.query_params:
        pulls = {name: sha for name, sha in repo.refs.items() if name.startswith("refs/pr/")}
        answer["pullRequests"] = listed(pulls, "")
    return JSONResponse(answer)


async def resolve(request: Request) -> Response:
    """A file's content, with the headers by which clients cache it. Ranges work."""
    repo = readable_repo(request)
    path = urllib.parse.unquote(request.path_params["path"])
    sha = commit_of(request, repo)
    if path not in ("README.md", ".gitattributes"):
        check_gate(request, repo)
    file = repo.commits[sha].tree.get(path)
    headers = {"X-Repo-Commit": sha}
    if file is None:
        raise Refused(404, "Entry not found", code="EntryNotFound", headers=headers)
    etag = f'"{file.sha256 or file.oid}"'
    headers |= {"ETag": etag, "X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
    content = hub_of(request).store.content_path(file)
    return FileResponse(content, headers=headers, media_type="application/octet-stream")


def _folder_entry(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0}


def _info(hub: Hub, repo: Repo, sha: str, *, blobs: bool) -> dict[str, Any]:
    files = repo.commits[sha].tree
    card = hub.store.card(files)
    siblings = []
    for path, file in sorted(files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": file.size, "blobId": file.oid}
            if file.sha256:
                sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
        siblings.append(sibling)
    answer = {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.owner,
        "sha": sha,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card, files),
        "cardData": card,
        "siblings": siblings,
        "createdAt": repo.created,
        "lastModified": repo.commits[sha].date,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
    }
    if repo.space is not None:
        answer |= {"sdk": repo.space.sdk, "runtime": runtime(repo)}
    return answer


def _tags(card: dict[str, Any], files: dict[str, Any]) -> list[str]:
    """The tags that the Hub derives from a card."""
    bases = card.get("base_model") or []
    bases = [bases] if isinstance(bases, str) else bases
    guessed = "adapter" if "adapter_config.json" in files else "finetune"
    relation = card.get("base_model_relation") or guessed
    tags = list(card.get("tags") or [])
    tags += [f"base_model:{base}" for base in bases]
    tags += [f"base_model:{relation}:{base}" for base in bases]
    if card.get("license"):
        tags.append(f"license:{card['license']}")
    return tags


def runtime(repo: Repo) -> dict[str, Any]:
    """A Space's runtime, as the API shows it."""
    if repo.space is None:
        raise Refused(404, "Repository not found", code="RepoNotFound")
    hardware = {"current": repo.space.hardware, "requested": repo.space.hardware}
    return {
        "stage": repo.space.stage,
        "hardware": hardware,
        "gcTimeout": repo.space.sleep_seconds,
    }
