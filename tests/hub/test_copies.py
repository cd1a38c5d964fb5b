"""Unchanged files are copied by the Hub where it can, and uploaded where it says that it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from abl_hub.errors import HubError
from abl_hub.hub.local import Fault, LocalHub
from abl_hub.hub.publish import Published, publish
from abl_hub.progress import Advance
from tests.hub.tiny_repos import MODEL_FILES, put, safetensors

BASE = "demo/base"
SHARDS = {f"model-{number}.safetensors": safetensors(number) for number in (1, 2, 3)}
CHANGED = "model-2.safetensors"


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda _: None

    def note(self, text: str) -> None:
        self.texts.append(text)


class Push:
    """A model whose base is on the Hub, and one shard of which has changed."""

    def __init__(self, hub: LocalHub, api: HfApi, folder: Path) -> None:
        self.hub, self.api, self.folder, self.notes = hub, api, folder, Notes()
        self.files = {"config.json": MODEL_FILES["config.json"], **SHARDS}
        self.commit = put(api, BASE, self.files)
        self.files[CHANGED] = safetensors(20)
        folder.mkdir()
        for path, content in self.files.items():
            (folder / path).write_bytes(content)
        self.start = len(hub.requests)

    def __call__(self, **changes: object) -> Published:
        given = {
            "repo_id": "demo/edited",
            "kind": "model",
            "origin": (BASE, self.commit),
            "token": self.hub.token,
            "endpoint": self.hub.endpoint,
            "commit_message": "Publish",
            "progress": self.notes,
            **changes,
        }
        return publish(self.folder, **given)  # type: ignore[arg-type]

    def uploads(self) -> int:
        return sum(r.method == "PUT" and r.status == 200 for r in self.hub.requests[self.start :])

    def check(self, tmp_path: Path, repo: str = "demo/edited") -> None:
        found = Path(self.api.snapshot_download(repo, local_dir=tmp_path / "found"))
        assert {path: (found / path).read_bytes() for path in self.files} == self.files


@pytest.fixture
def push(hub: LocalHub, api: HfApi, tmp_path: Path) -> Push:
    return Push(hub, api, tmp_path / "model")


def test_only_what_changed_is_sent(push: Push, tmp_path: Path):
    done = push()
    assert done.copied == tuple(sorted(SHARDS.keys() - {CHANGED}))
    assert push.uploads() == 1
    assert push.notes.texts == []
    push.check(tmp_path)
    again = push()
    assert (again.commit, again.changed, again.copied) == (done.commit, False, ())
    assert push.uploads() == 1


def test_without_an_origin_everything_is_sent(push: Push, tmp_path: Path):
    done = push(origin=None)
    assert (done.copied, push.uploads()) == ((), 3)
    push.check(tmp_path)


@pytest.mark.parametrize("status", [400, 403, 404, 501])
def test_a_hub_that_does_not_copy_says_so_once(push: Push, tmp_path: Path, status: int):
    refused = Fault(
        kind="status", status=status, path="/lfs-files/duplicate", message="other region"
    )
    with push.hub.faults.set(refused):
        done = push()
    assert (done.copied, push.uploads()) == ((), 3)
    (note,) = push.notes.texts
    assert "does not copy from demo/base to demo/edited (" in note
    assert "other region" in note
    push.check(tmp_path)


def test_a_base_outside_of_chunked_storage_is_not_copied(tmp_path: Path):
    with LocalHub(tmp_path / "plain", chunked=False) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        push = Push(hub, api, tmp_path / "model")
        done = push()
        assert (done.copied, push.uploads()) == ((), 3)
        assert "chunked storage" in push.notes.texts[0]
        push.check(tmp_path)


def test_a_base_that_is_gone_is_not_copied(push: Push, tmp_path: Path):
    push.api.delete_repo(BASE)
    done = push()
    assert (done.copied, push.uploads()) == ((), 3)
    assert len(push.notes.texts) == 1
    push.check(tmp_path)


def test_a_base_of_someone_else(push: Push, hub: LocalHub, tmp_path: Path):
    """Public: copied. Private: its existence is not told, and everything is sent."""
    alice = hub.add_token("alice")
    assert push(repo_id="alice/edited", token=alice).copied == ()
    push.api.update_repo_settings(BASE, private=False)
    assert len(push(repo_id="alice/second", token=alice).copied) == 2


def test_a_lost_token_is_told(push: Push):
    lost = Fault(kind="status", status=401, path="/lfs-files/duplicate", times=None)
    with push.hub.faults.set(lost), pytest.raises(HubError, match="does not know who you are"):
        push()
