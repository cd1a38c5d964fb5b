"""`push --stream`: the base comes shard by shard too, and is never whole on this disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.errors import HubError, OutputError, SourceError
from abl_hub.hub.local import Fault, LocalHub
from abl_hub.hub.publish import publish
from abl_hub.report.record import save_record
from abl_hub.stages.journal import streaming_folder
from abl_hub.stages.target import Target

BASE = "demo/base"
WEIGHTS = "model-*.safetensors"
OWN = {"README.md", "record.json", ".abl-hub-files.json", ".gitattributes"}
"""Files that say where and how they were published."""


@pytest.fixture(scope="module")
def sharded(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in about ten shards."""
    folder = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_pretrained(demo).save_pretrained(folder, max_shard_size="600KB")
    AutoTokenizer.from_pretrained(demo).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(
    small_recipe: abl_hub.Recipe, sharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A conversion of it with the merged model on disk; the embedding's shard is not edited."""
    out = tmp_path_factory.mktemp("whole") / "out"
    abl_hub.convert(replace(small_recipe, source=str(sharded), layers=(1, 3)), out)
    return out


@pytest.fixture
def edited(whole: Path, sharded: Path) -> str:
    """A shard that the edit changes, in the middle."""
    written = abl_hub.load_record(whole).merged.files
    changed = [
        file.path
        for file in written
        if file.path.startswith("model-")
        and hashlib.sha256((sharded / file.path).read_bytes()).hexdigest() != file.sha256
    ]
    return changed[len(changed) // 2]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the output, the client's cache and everything that is made on the way lie."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def runtime(hub: LocalHub, here: Path) -> abl_hub.Runtime:
    return abl_hub.Runtime(token=hub.token, endpoint=hub.endpoint, cache_dir=here / "cache")


@pytest.fixture
def out(whole: Path, sharded: Path, hub: LocalHub, here: Path) -> Path:
    """The same output as if its base were a repository: OUT without the merged model."""
    at = {"token": hub.token, "endpoint": hub.endpoint}
    done = publish(sharded, repo_id=BASE, kind="model", commit_message="Base", **at)
    out = Path(shutil.copytree(whole, here / "out", ignore=shutil.ignore_patterns("merged")))
    record = abl_hub.load_record(whole)
    source = replace(record.source, name=BASE, repo=BASE, commit=done.commit)
    record = replace(record, source=source, recipe=replace(record.recipe, source=BASE))
    save_record(replace(record, merged=None, evaluated_form="hooks"), out)
    hub.requests.clear()
    return out


def target(repo: str, **changes: object) -> Target:
    return Target(**{"only": ("merged",), "merged_repo": repo, **changes})  # type: ignore[arg-type]


@dataclass
class Disk:
    """All bytes under a folder, measured all the time from a thread of its own."""

    folder: Path
    peak_bytes: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.before = self._bytes()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.done.wait(0.0005):
            self.peak_bytes = max(self.peak_bytes, self._bytes() - self.before)

    def _bytes(self) -> int:
        sizes = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with suppress(FileNotFoundError):  # gone since it was listed
                    sizes += (Path(parent) / name).lstat().st_size
        return sizes


def downloads(hub: LocalHub, repo: str = BASE) -> list[str]:
    """Shards of a repository that were sent whole, in order."""
    asked = [r.path for r in hub.requests if r.method == "GET" and r.status == 200]
    return [
        path.rpartition("/")[2]
        for path in asked
        if f"/{repo}/resolve/" in path and "/model-" in path
    ]


def uploads(hub: LocalHub) -> list[str]:
    return [r.path for r in hub.requests if r.method == "PUT" and r.status == 200]


def content(api: HfApi, repo: str, folder: Path) -> dict[str, str]:
    """Path → SHA-256, of everything but what says where it was published."""
    found = Path(api.snapshot_download(repo, local_dir=folder / repo.replace("/", "-")))
    return {
        path.relative_to(found).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found.rglob("*")
        if path.is_file() and path.name not in OWN and ".cache" not in path.parts
    }


def test_never_whole_on_this_disk_and_the_same_bytes(
    out: Path,
    whole: Path,
    sharded: Path,
    here: Path,
    hub: LocalHub,
    runtime: abl_hub.Runtime,
    tmp_path: Path,
) -> None:
    sizes = {path.name: path.stat().st_size for path in sharded.glob(WEIGHTS)}
    small = sum(p.stat().st_size for p in sharded.iterdir() if p.name not in sizes)
    assert len(sizes) >= 6
    with Disk(here) as disk:
        pushed = abl_hub.push(out, runtime, target("m"), stream=True)
    (item,) = pushed.published
    # Two shards; the base's small files in the cache, the same and the card's files beside OUT.
    cards = sum(p.stat().st_size for p in (out / "direction").rglob("*") if p.is_file())
    assert sum(sizes.values()) > 4 * max(sizes.values())
    assert max(sizes.values()) < disk.peak_bytes
    assert disk.peak_bytes <= 2 * max(sizes.values()) + 3 * (small + cards)
    assert not list(here.rglob(WEIGHTS))
    assert sorted(path.name for path in here.iterdir()) == ["cache", "out"]
    # What the edit does not touch was copied on the Hub and never came here.
    assert len(item.copied) >= 2
    assert sorted(downloads(hub)) == sorted(sizes.keys() - set(item.copied))
    assert pushed.loaded_back.merged_apart is None

    plain = abl_hub.push(whole, runtime, target("w"))
    assert plain.published[0].files == item.files
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    streamed = content(api, "demo/m", tmp_path)
    assert len(streamed) > len(sizes)
    assert streamed == content(api, "demo/w", tmp_path)
    assert abl_hub.load_record(out).merged.files == abl_hub.load_record(whole).merged.files

    # The same again: nothing is fetched, nothing is made, nothing is sent.
    hub.requests.clear()
    again = abl_hub.push(out, runtime, target("m"), stream=True).published[0]
    assert (again.commit, again.changed) == (item.commit, False)
    assert downloads(hub) == []
    assert uploads(hub) == []


def test_what_was_done_before_a_failure_is_not_done_again(
    out: Path, sharded: Path, here: Path, hub: LocalHub, runtime: abl_hub.Runtime
) -> None:
    """The token is lost in the middle of it, at a download, an upload and the commit."""
    shards = len(list(sharded.glob(WEIGHTS)))
    refusals = (
        Fault(kind="status", status=401, method="GET", path=f"/{BASE}/resolve/.*/model-", skip=12),
        Fault(kind="status", status=401, method="PUT", path="/_lfs/", skip=1),
        Fault(kind="status", status=401, path="/commit/"),
    )
    for refused in refusals:
        with hub.faults.set(refused), pytest.raises((HubError, SourceError)):
            abl_hub.push(out, runtime, target("m"), stream=True)
        assert HfApi(endpoint=hub.endpoint, token=hub.token).list_repo_files("demo/m") == [
            ".gitattributes"
        ]
    (item,) = abl_hub.push(out, runtime, target("m"), stream=True).published
    fetched = downloads(hub)
    assert len(fetched) == len(set(fetched)) == shards - len(item.copied)
    sent = uploads(hub)
    assert len(sent) == len(set(sent)) == len(fetched) + 1  # and the direction
    assert sorted(path.name for path in here.iterdir()) == ["cache", "out"]


def test_a_hub_that_lost_what_it_was_sent_gets_it_again(
    out: Path, hub: LocalHub, runtime: abl_hub.Runtime
) -> None:
    (first,) = abl_hub.push(out, runtime, target("m"), stream=True).published
    (other,) = abl_hub.push(out, runtime, target("other"), stream=True).published
    assert other.repo != first.repo
    assert (other.changed, other.files) == (True, first.files)
    fetched = downloads(hub)
    assert all(fetched.count(name) == 2 for name in fetched)


def test_the_delta_is_placed_without_the_base(
    out: Path, hub: LocalHub, here: Path, runtime: abl_hub.Runtime
) -> None:
    words = ["--format", "json", "push", str(out), "--stream", "--cache-dir", str(here / "cache")]
    words += ["--only", "delta", "--only", "merged", "--delta-repo", "d", "--merged-repo", "m"]
    planned = CliRunner().invoke(command, [*words, "--dry-run"])
    assert planned.exit_code == 0, (planned.stderr, planned.exception)
    assert "shards fetched one by one" in json.loads(planned.stdout)["base"]
    assert not downloads(hub)
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, (done.stderr, done.exception)
    loaded = json.loads(done.stdout)["loaded_back"]
    assert (loaded["delta_apart"], loaded["merged_apart"]) == (None, None)
    assert not list(here.rglob(WEIGHTS))


def test_shards_in_the_cache_are_used_there(
    out: Path, edited: str, hub: LocalHub, here: Path, runtime: abl_hub.Runtime
) -> None:
    commit = abl_hub.load_record(out).source.commit
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    cached = Path(api.hf_hub_download(BASE, edited, revision=commit, cache_dir=here / "cache"))
    before = cached.read_bytes()
    hub.requests.clear()
    abl_hub.push(out, runtime, target("m"), stream=True)
    assert len(downloads(hub)) > 2
    assert edited not in downloads(hub)
    assert cached.read_bytes() == before


def test_a_shard_that_came_with_other_bytes_is_refused(
    out: Path, edited: str, hub: LocalHub, runtime: abl_hub.Runtime
) -> None:
    """The Hub announces one SHA-256 and sends another file of the same length."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    (info,) = api.get_paths_info(BASE, [edited])
    stored = hub.root / "lfs" / info.lfs.sha256
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(SourceError, match="did not come as the Hub announced it"):
        abl_hub.push(out, runtime, target("m"), stream=True)
    assert api.list_repo_files("demo/m") == [".gitattributes"]


def test_it_is_kept_beside_the_folder_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with streaming_folder(Path()) as folder:
        assert folder == tmp_path / "out.streaming"


def test_a_folder_of_someone_else_is_left_alone(out: Path, runtime: abl_hub.Runtime) -> None:
    other = out.with_name("out.streaming")
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="was not made by a streamed push"):
        abl_hub.push(out, runtime, target("m"), stream=True)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_notes_of_another_edit_are_forgotten(
    out: Path, whole: Path, hub: LocalHub, runtime: abl_hub.Runtime
) -> None:
    """Broken off, then the direction is scaled: no shard of the first edit is taken."""
    refused = Fault(kind="status", status=401, path="/commit/")
    with hub.faults.set(refused), pytest.raises(HubError):
        abl_hub.push(out, runtime, target("m"), stream=True)
    record = abl_hub.load_record(out)
    assert record.merged is not None  # all shards were sent
    recipe = replace(record.recipe, strength=0.5)
    save_record(replace(record, recipe=recipe, merged=None), out)
    with (
        hub.faults.set(Fault(kind="status", status=401, method="PUT", path="/_lfs/", skip=2)),
        pytest.raises(HubError),
    ):
        abl_hub.push(out, runtime, target("m"), stream=True)
    save_record(replace(record, merged=None), out)
    abl_hub.push(out, runtime, target("m"), stream=True)
    assert abl_hub.load_record(out).merged.files == abl_hub.load_record(whole).merged.files


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's and our own retries, without their pauses."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr("abl_hub.hub.retry.time", SimpleNamespace(sleep=lambda _: None))


PASSING = {
    "lose": Fault(kind="lose"),
    "drop": Fault(kind="drop"),
    "truncate": Fault(kind="truncate"),
    "503": Fault(kind="status", status=503),
    "429": Fault(kind="status", status=429, headers={"Retry-After": "0"}),
}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("truncate", 17),
        pytest.param("lose", 1, marks=pytest.mark.slow),
        *(pytest.param(name, 5, marks=pytest.mark.slow) for name in PASSING if name != "lose"),
    ],
)
def test_any_request_may_fail_once(
    name: str,
    step: int,
    out: Path,
    whole: Path,
    hub: LocalHub,
    here: Path,
    runtime: abl_hub.Runtime,
    no_waiting: None,
) -> None:
    """Every request of a whole streamed push, or every so many; each time to a new repository."""
    abl_hub.push(out, runtime, target("clean"), stream=True)
    count = len(hub.requests)
    wanted = {file.path for file in abl_hub.load_record(whole).merged.files}
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    assert count > 60
    for skip in range(step - 1, count, step):
        shutil.rmtree(here / "cache")
        record = replace(abl_hub.load_record(out), merged=None)
        save_record(record, out)
        with hub.faults.set(replace(PASSING[name], skip=skip)):
            (item,) = abl_hub.push(out, runtime, target(f"m{skip}"), stream=True).published
        assert wanted <= set(api.list_repo_files(f"demo/m{skip}"))
        assert len(api.list_repo_commits(item.repo)) == 2
        assert sorted(path.name for path in here.iterdir()) == ["cache", "out"]
