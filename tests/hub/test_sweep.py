"""A fault at every request of a whole streamed publication: copy, stream, commit, load back, tag.

Each ends in success, or in one clear line and a rerun that finishes; the Hub shows all or nothing.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from abl_hub.errors import AblHubError
from abl_hub.hub.ahead import Ahead
from abl_hub.hub.collect import collect, tag_commit
from abl_hub.hub.copies import Origin
from abl_hub.hub.fetch import fetch_published
from abl_hub.hub.local import Fault, LocalHub
from abl_hub.hub.payload import MANIFEST
from abl_hub.hub.publish import publish
from abl_hub.hub.repository import Repository
from tests.hub.tiny_repos import SENTINEL, put, safetensors

BASE = "demo/base"
UNTOUCHED, EDITED = "model-1.safetensors", "model-2.safetensors"
TAG = "abl-hub-0"

FAULTS = (
    Fault(kind="lose"),
    Fault(kind="status", status=403),
    *(
        pytest.param(fault, marks=pytest.mark.slow)
        for fault in (
            Fault(kind="status", status=401),
            Fault(kind="status", status=404),
            Fault(kind="status", status=409),
            Fault(kind="status", status=412),
            Fault(kind="status", status=429, headers={"Retry-After": "0"}),
            Fault(kind="status", status=500),
            Fault(kind="drop"),
            Fault(kind="truncate"),
            Fault(kind="slow", seconds=0.02),
        )
    ),
)
REFUSALS = (401, 403, 404)


class Job:
    """What `push` asks of the Hub for a streamed model, on files of a few bytes."""

    def __init__(self, hub: LocalHub, api: HfApi, here: Path) -> None:
        self.hub, self.api, self.here = hub, api, here
        self.at = {"token": SENTINEL, "endpoint": hub.endpoint}
        hub.add_token("demo", token=SENTINEL)
        self.commit = put(api, BASE, {UNTOUCHED: safetensors(1), EDITED: safetensors(2)})
        self.files = {
            "README.md": b"---\nlicense: mit\n---\n",
            UNTOUCHED: safetensors(1),
            EDITED: b"",
        }

    def run(self, repo_id: str, edited: bytes) -> None:
        """Publish, load back, tag and collect, as often as it takes."""
        self.files[EDITED] = edited
        repo = Repository(repo_id, "model", **self.at)
        with repo.translated():
            repo.prepare(private=False)
        ahead = Ahead(repo, origin=Origin(BASE, self.commit, target=repo))
        for path in (UNTOUCHED, EDITED):
            content = self.files[path]
            sha256 = hashlib.sha256(content).hexdigest()
            if not ahead.copy_file(path, sha256=sha256, size=len(content)):
                shard = self.here / path
                shard.write_bytes(content)
                ahead.send_file(path, shard)
                shard.unlink()
        card = self.here / "card"
        card.mkdir(exist_ok=True)
        (card / "README.md").write_bytes(self.files["README.md"])
        done = publish(
            card,
            repo_id=repo_id,
            kind="model",
            private=False,
            commit_message="Publish",
            ahead=ahead,
            **self.at,
        )
        back = self.here / "back"
        for path, file in fetch_published(done, back, **self.at):
            assert path == MANIFEST or file.read_bytes() == self.files[path]
        shutil.rmtree(back)
        tag_commit(done, TAG, **self.at)
        collect([done], title="Swept", base=BASE, **self.at)

    def check_nothing_half_done(self, repo_id: str) -> None:
        if not self.api.repo_exists(repo_id):
            return
        shown = set(self.api.list_repo_files(repo_id)) - {".gitattributes"}
        assert shown in (set(), {*self.files, MANIFEST})
        assert shown or self.api.model_info(repo_id).private

    def check(self, repo_id: str, tmp_path: Path) -> None:
        assert [c.title for c in self.api.list_repo_commits(repo_id)] == [
            "Publish",
            "initial commit",
        ]
        info = self.api.model_info(repo_id)
        assert info.private is False
        (tag,) = self.api.list_repo_refs(repo_id).tags
        assert (tag.name, tag.target_commit) == (TAG, info.sha)
        (listed,) = self.api.list_collections(owner="demo")
        items = [item.item_id for item in self.api.get_collection(listed.slug).items]
        assert items.count(BASE) == items.count(repo_id) == 1


def _name(fault: Fault) -> str:
    return f"{fault.kind}-{fault.status}" if fault.kind == "status" else fault.kind


@pytest.mark.parametrize("fault", FAULTS, ids=_name)
def test_a_fault_at_any_request(
    fault: Fault,
    hub: LocalHub,
    api: HfApi,
    tmp_path: Path,
    no_waiting: None,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    here = tmp_path / "here"
    here.mkdir()
    job = Job(hub, api, here)
    start = len(hub.requests)
    job.run("demo/clean", safetensors(99))
    paths = [f"{r.method} {r.path}" for r in hub.requests[start:]]
    for part in ("/lfs-files/duplicate", "/commit/", "/tag/", "/api/collections", "/resolve/"):
        assert any(part in path for path in paths), part
    told = []
    for at in range(len(paths)):
        repo_id, edited = f"demo/swept-{at}", safetensors(100 + at)
        shown = replace(fault, skip=at, message=f"refused {SENTINEL}")
        with hub.faults.set(shown):
            try:
                job.run(repo_id, edited)
            except AblHubError as error:
                told.append(error)
                job.check_nothing_half_done(repo_id)
                job.run(repo_id, edited)
        job.check(repo_id, tmp_path)
    assert bool(told) == (fault.status in REFUSALS and fault.kind == "status")
    for error in told:
        assert "\n" not in str(error)
        assert SENTINEL not in f"{error!s} {error.__cause__!r}"
    assert SENTINEL not in caplog.text
