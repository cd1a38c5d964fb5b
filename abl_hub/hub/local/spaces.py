"""What only Spaces and collections have."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abl_hub.hub.local.access import (
    Hub,
    Refused,
    account,
    hub_of,
    owner_of_namespace,
    readable_repo,
    writable_repo,
)
from abl_hub.hub.local.reading import runtime
from abl_hub.hub.local.store import Collection, Kind, Repo, Space, timestamp


async def secrets(request: Request) -> Response:
    """Names and dates of secrets. A value is accepted and forgotten: nothing runs here."""
    repo = writable_repo(request)
    return await _settings(request, repo, _space(repo).secrets, keep_value=False)


async def variables(request: Request) -> Response:
    repo = writable_repo(request)
    return await _settings(request, repo, _space(repo).variables, keep_value=True)


async def _settings(
    request: Request, repo: Repo, values: dict[str, dict[str, Any]], *, keep_value: bool
) -> Response:
    if request.method == "POST":
        asked = await request.json()
        kept = {k: v for k, v in asked.items() if keep_value or k != "value"}
        values[asked["key"]] = {**kept, "updatedAt": timestamp()}
    elif request.method == "DELETE":
        values.pop((await request.json())["key"], None)
    hub_of(request).store.save(repo)
    return JSONResponse(values)


async def show_runtime(request: Request) -> Response:
    return JSONResponse(runtime(readable_repo(request)))


async def change_runtime(request: Request) -> Response:
    repo = writable_repo(request)
    space = _space(repo)
    asked = json.loads(await request.body() or b"{}")
    operation = request.path_params["operation"]
    if operation == "hardware":
        space.hardware = asked["flavor"]
        space.sleep_seconds = asked.get("sleepTimeSeconds", space.sleep_seconds)
    elif operation == "sleeptime":
        space.sleep_seconds = asked["seconds"]
    elif operation in ("pause", "restart"):
        space.stage = "PAUSED" if operation == "pause" else "RUNNING"
    else:
        raise Refused(404, f"No such operation: {operation}")
    hub_of(request).store.save(repo)
    return JSONResponse(runtime(repo))


def _space(repo: Repo) -> Space:
    if repo.space is None:
        raise Refused(404, "Repository not found", code="RepoNotFound")
    return repo.space


async def create_collection(request: Request) -> Response:
    hub = hub_of(request)
    asked = await request.json()
    owner = owner_of_namespace(request, asked["namespace"]).user
    for known in hub.store.collections.values():
        if known.owner == owner and known.title == asked["title"]:
            return Refused(409, "Collection exists already").response({"slug": known.slug})
    words = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
    collection = Collection(
        slug=f"{owner}/{words}-{uuid.uuid4().hex[:24]}",
        title=asked["title"],
        owner=owner,
        description=asked.get("description"),
        private=asked.get("private", False),
    )
    hub.store.collections[collection.slug] = collection
    hub.store.save(collection)
    return JSONResponse(_shown(collection))


async def list_collections(request: Request) -> Response:
    owner = request.query_params.get("owner")
    known = account(request)
    shown = [
        {key: value for key, value in _shown(collection).items() if key != "position"}
        for collection in hub_of(request).store.collections.values()
        if owner in (None, collection.owner)
        if not collection.private or (known is not None and known.user == collection.owner)
    ]
    return JSONResponse(shown)


async def collection(request: Request) -> Response:
    hub = hub_of(request)
    found = _collection(request, hub)
    if request.method == "DELETE":
        owner_of_namespace(request, found.owner)
        hub.store.delete_collection(found)
        return JSONResponse({})
    return JSONResponse(_shown(found))


async def add_collection_item(request: Request) -> Response:
    hub = hub_of(request)
    found = _collection(request, hub)
    owner_of_namespace(request, found.owner)
    asked = await request.json()
    kind: Kind = asked["item"]["type"]
    repo_id: str = asked["item"]["id"]
    if (kind, repo_id) not in hub.store.repos:
        raise Refused(404, "The item does not exist")
    if any((item["type"], item["id"]) == (kind, repo_id) for item in found.items):
        raise Refused(409, "The item is in the collection already")
    note = {"text": asked["note"]} if asked.get("note") else None
    found.items.append({"_id": uuid.uuid4().hex, "id": repo_id, "type": kind, "note": note})
    found.updated = timestamp()
    hub.store.save(found)
    return JSONResponse(_shown(found))


def _collection(request: Request, hub: Hub) -> Collection:
    slug = f"{request.path_params['namespace']}/{request.path_params['name']}"
    found = hub.store.collections.get(slug)
    known = account(request)
    if found is None or (found.private and (known is None or known.user != found.owner)):
        raise Refused(404, "Collection not found")
    return found


def _shown(collection: Collection) -> dict[str, Any]:
    items = [{**item, "position": place} for place, item in enumerate(collection.items)]
    return {
        "slug": collection.slug,
        "title": collection.title,
        "owner": collection.owner,
        "description": collection.description,
        "private": collection.private,
        "items": items,
        "lastUpdated": collection.updated,
        "position": 0,
        "theme": "indigo",
        "upvotes": 0,
    }
