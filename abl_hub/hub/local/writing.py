"""Answers that change a repository: creation, settings, uploads, commits, tags, pull requests."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import uuid
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abl_hub.hub.local.access import (
    Refused,
    check_gate,
    commit_of,
    hub_of,
    owner_of_namespace,
    readable_repo,
    revision,
    signed_in,
    writable_repo,
)
from abl_hub.hub.local.store import (
    LFS_PATTERNS,
    LFS_THRESHOLD_BYTES,
    Discussion,
    File,
    Kind,
    Repo,
    Store,
    front_matter,
    timestamp,
)


async def create(request: Request) -> Response:
    hub = hub_of(request)
    asked = await request.json()
    namespace = asked.get("organization") or signed_in(request).user
    author = owner_of_namespace(request, namespace).user
    kind: Kind = asked.get("type") or "model"
    repo_id = f"{namespace}/{asked['name']}"
    known = hub.store.repos.get((kind, repo_id))
    if known is not None:
        refused = Refused(409, "You already created this repo")
        return refused.response({"url": hub.url(known)})
    private = asked.get("visibility") == "private"
    repo = hub.store.create(kind, repo_id, private=private, sdk=asked.get("sdk"), author=author)
    if repo.space is not None:
        repo.space.hardware = asked.get("hardware")
        repo.space.sleep_seconds = asked.get("sleepTimeSeconds")
        repo.space.secrets = {s["key"]: _without_value(s) for s in asked.get("secrets") or []}
        repo.space.variables = {v["key"]: v for v in asked.get("variables") or []}
        hub.store.save(repo)
    return JSONResponse({"url": hub.url(repo), "name": repo_id, "id": repo_id})


async def delete(request: Request) -> Response:
    hub = hub_of(request)
    asked = await request.json()
    namespace = asked.get("organization") or signed_in(request).user
    owner_of_namespace(request, namespace)
    repo = hub.store.repos.get((asked.get("type") or "model", f"{namespace}/{asked['name']}"))
    if repo is None:
        raise Refused(404, "Repository not found", code="RepoNotFound")
    hub.store.delete(repo)
    return JSONResponse({})


async def settings(request: Request) -> Response:
    repo = writable_repo(request)
    asked = await request.json()
    if "gated" in asked:
        repo.gated = asked["gated"]
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    hub_of(request).store.save(repo)
    return JSONResponse(asked)


async def duplicate(request: Request) -> Response:
    hub = hub_of(request)
    source = readable_repo(request)
    asked = await request.json()
    author = owner_of_namespace(request, asked["repository"].split("/")[0]).user
    if (source.kind, asked["repository"]) in hub.store.repos:
        raise Refused(409, "Repository already exists")
    private = asked.get("visibility", "private" if source.private else "public") == "private"
    sdk = source.space.sdk if source.space else None
    copy = hub.store.create(
        source.kind, asked["repository"], private=private, sdk=sdk, author=author
    )
    title = f"Duplicate from {source.id}"
    copy.objects |= source.objects
    copy.commit(dict(source.tree()), title=title, author=author, ref="main")
    hub.store.save(copy)
    return JSONResponse({"url": hub.url(copy)})


async def validate_yaml(request: Request) -> Response:
    asked = await request.json()
    try:
        block = front_matter(asked["content"])
    except yaml.YAMLError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    if block is None:
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return JSONResponse({"errors": [], "warnings": [warning]})
    errors = []
    if not isinstance(block, dict):
        errors.append({"message": "the metadata is not a mapping"})
    elif asked["repoType"] == "space" and "sdk" not in block:
        errors.append({"message": '"sdk" is required'})
    elif not isinstance(block.get("license", ""), (str, list)):
        errors.append({"message": '"license" must be a string'})
    return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)


async def preupload(request: Request) -> Response:
    """How each file must be sent (LFS or within the commit), and what is there now."""
    repo = readable_repo(request)
    if "create_pr" not in request.query_params:
        writable_repo(request)
    asked = await request.json()
    tree = repo.tree(commit_of(request, repo))
    ignored = [line.strip() for line in (asked.get("gitIgnore") or "").splitlines()]
    files = []
    for file in asked["files"]:
        path, there = file["path"], tree.get(file["path"])
        name = path.rsplit("/", 1)[-1]
        large = file["size"] > LFS_THRESHOLD_BYTES
        as_lfs = large or any(fnmatch.fnmatch(name, pattern) for pattern in LFS_PATTERNS)
        files.append(
            {
                "path": path,
                "uploadMode": "lfs" if as_lfs else "regular",
                "shouldIgnore": any(fnmatch.fnmatch(path, line) for line in ignored if line),
                "oid": (there.sha256 or there.oid) if there else None,
            }
        )
    return JSONResponse({"files": files})


async def lfs_batch(request: Request) -> Response:
    hub = hub_of(request)
    repo = readable_repo(request)
    signed_in(request)
    objects = []
    for asked in (await request.json())["objects"]:
        answer = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
        if asked["oid"] not in repo.objects:
            href = f"{hub.endpoint}/_lfs/{asked['oid']}?kind={repo.kind}&repo={repo.id}"
            upload = {"href": href, "header": {}}
            verify = {"href": f"{hub.endpoint}/_lfs/verify", "header": {}}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return JSONResponse({"transfer": "basic", "objects": objects})


async def lfs_upload(request: Request) -> Response:
    """One object; it appears whole, under its hash, or not at all."""
    store = hub_of(request).store
    oid = request.path_params["oid"]
    asked: Any = request.query_params  # signed by the batch answer, on the real Hub
    repo = store.repos[asked["kind"], asked["repo"]]
    target = store.lfs_path(oid)
    digest = hashlib.sha256()
    temporary = store.root / "incoming" / uuid.uuid4().hex
    try:
        with temporary.open("wb") as out:
            async for chunk in request.stream():
                out.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != oid:
            raise Refused(400, "the content does not have the announced SHA-256")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    repo.objects.add(oid)
    store.save(repo)
    return Response()


async def lfs_verify(request: Request) -> Response:
    asked = await request.json()
    file = hub_of(request).store.lfs_file(asked["oid"])
    if file is None or file.size != asked["size"]:
        raise Refused(404, "no such LFS object")
    return JSONResponse({})


async def lfs_duplicate(request: Request) -> Response:
    """Copy LFS objects of this repository into another, which the caller must be able to write."""
    hub = hub_of(request)
    source = readable_repo(request)
    check_gate(request, source)
    asked = await request.json()
    kind: Kind = asked["target"]["type"]
    target = hub.store.repos.get((kind, asked["target"]["name"]))
    if target is None:
        raise Refused(404, "Repository not found", code="RepoNotFound")
    owner_of_namespace(request, target.owner)
    wanted = [file["sha256"] for file in asked["files"]]
    target.objects |= source.objects & set(wanted)
    hub.store.save(target)
    missing = [sha256 for sha256 in wanted if sha256 not in source.objects]
    return JSONResponse({"failed": [{"sha256": sha, "error": "missing"} for sha in missing]})


async def commit(request: Request) -> Response:
    """All operations of a commit, or none of them."""
    hub = hub_of(request)
    as_pull_request = "create_pr" in request.query_params
    repo = readable_repo(request) if as_pull_request else writable_repo(request)
    author = signed_in(request).user
    ref = revision(request)
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    header = lines[0]["value"]
    parent = repo.refs.get(ref)
    if parent is None:
        raise Refused(404, f"Invalid rev id: {ref}", code="RevisionNotFound")
    if not parent.startswith(header.get("parentCommit") or ""):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(repo.tree(parent))
    for line in lines[1:]:
        _apply(hub.store, repo, tree, line["key"], line["value"])
    discussion = None
    if as_pull_request:
        discussion = repo.open_discussion(title=header["summary"], author=author, pull_request=True)
        ref = discussion.ref
    sha = repo.commit(
        tree,
        title=header["summary"],
        description=header.get("description") or "",
        author=author,
        ref=ref,
    )
    hub.store.save(repo)
    answer = {
        "success": True,
        "commitOid": sha,
        "commitUrl": f"{hub.url(repo)}/commit/{sha}",
        "hookOutput": "",
    }
    if discussion is not None:
        answer["pullRequestUrl"] = f"{hub.url(repo)}/discussions/{discussion.number}"
    return JSONResponse(answer)


def _apply(
    store: Store, repo: Repo, tree: dict[str, File], key: str, value: dict[str, Any]
) -> None:
    """Apply one operation of a commit to `tree`."""
    path = value["path"]
    if key == "file":
        tree[path] = store.add_git_blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        file = store.lfs_file(value["oid"])
        if file is None or value["oid"] not in repo.objects:
            raise Refused(400, f"LFS object {value['oid']} was not uploaded")
        tree[path] = file
    elif key == "deletedFile":
        if path not in tree:
            raise Refused(404, "A file with this name doesn't exist", code="EntryNotFound")
        del tree[path]
    elif key == "deletedFolder":
        for inside in [p for p in tree if p.startswith(path.rstrip("/") + "/")]:
            del tree[inside]
    else:
        raise Refused(400, f"Unknown operation {key}")


async def tag(request: Request) -> Response:
    repo = writable_repo(request)
    if request.method == "DELETE":
        if repo.tags.pop(revision(request), None) is None:
            raise Refused(404, "Tag not found", code="RevisionNotFound")
    else:
        name = (await request.json())["tag"]
        if name in repo.tags:
            raise Refused(409, "Tag reference exists already")
        repo.tags[name] = commit_of(request, repo)
    hub_of(request).store.save(repo)
    return JSONResponse({})


async def branch(request: Request) -> Response:
    repo = writable_repo(request)
    name = revision(request)
    if request.method == "DELETE":
        if name == "main" or repo.refs.pop(name, None) is None:
            raise Refused(403, f"The branch {name} cannot be deleted")
    else:
        start = json.loads(await request.body() or b"{}").get("startingPoint")
        sha = repo.resolve(start)
        if name in repo.refs:
            raise Refused(409, "Reference already exists")
        if sha is None:
            raise Refused(404, f"Invalid rev id: {start}", code="RevisionNotFound")
        repo.refs[name] = sha
    hub_of(request).store.save(repo)
    return JSONResponse({})


async def discussions(request: Request) -> Response:
    repo = readable_repo(request)
    if request.method == "POST":
        asked = await request.json()
        opened = repo.open_discussion(
            title=asked["title"],
            author=signed_in(request).user,
            pull_request=asked["pullRequest"],
        )
        if opened.is_pull_request:
            opened.status = "draft"
        hub_of(request).store.save(repo)
        return JSONResponse({"num": opened.number})
    kind, status = request.query_params.get("type"), request.query_params.get("status")
    wanted_kind = {"pull_request": True, "discussion": False}.get(kind or "")
    wanted_statuses = {"open": ("open", "draft"), "closed": ("closed", "merged")}
    listed = [
        _discussion_entry(repo, discussion)
        for discussion in reversed(repo.discussions)
        if wanted_kind in (None, discussion.is_pull_request)
        if discussion.status in wanted_statuses.get(status or "", (discussion.status,))
    ]
    return JSONResponse({"discussions": listed, "count": len(listed), "start": 0})


async def discussion_details(request: Request) -> Response:
    repo = readable_repo(request)
    return JSONResponse(_discussion_entry(repo, _discussion(request, repo)))


async def merge(request: Request) -> Response:
    """Move main to a pull request's content."""
    repo = writable_repo(request)
    discussion = _discussion(request, repo)
    if not discussion.is_pull_request or discussion.status == "merged":
        raise Refused(400, "Nothing to merge")
    author = signed_in(request).user
    title = f"{discussion.title} (#{discussion.number})"
    repo.commit(dict(repo.tree(discussion.ref)), title=title, author=author, ref="main")
    discussion.status = "merged"
    hub_of(request).store.save(repo)
    event = {
        "id": uuid.uuid4().hex,
        "type": "status-change",
        "author": {"name": author},
        "createdAt": timestamp(),
        "data": {"status": "merged"},
    }
    return JSONResponse({"newStatus": event})


def _discussion(request: Request, repo: Repo) -> Discussion:
    number = int(request.path_params["number"])
    if not 1 <= number <= len(repo.discussions):
        raise Refused(404, "Discussion not found")
    return repo.discussions[number - 1]


def _discussion_entry(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.date,
        "status": discussion.status,
        "isPullRequest": discussion.is_pull_request,
        "repo": {"name": repo.id, "type": repo.kind},
        "events": [],
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
    }


def _without_value(secret: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in secret.items() if key != "value"} | {
        "updatedAt": timestamp()
    }
