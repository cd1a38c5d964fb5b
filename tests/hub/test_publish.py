"""Publishing: one commit, private, repeatable; and what happens when the Hub misbehaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from abl_hub.errors import AblHubError, HubError
from abl_hub.hub.account import namespace
from abl_hub.hub.collect import collect, tag_commit
from abl_hub.hub.local import Fault, LocalHub
from abl_hub.hub.payload import MANIFEST
from abl_hub.hub.publish import Published, plan_publish, publish
from tests.hub.tiny_repos import MODEL_FILES, SENTINEL, put, safetensors

FILES = {**MODEL_FILES, "plots/deltas.png": b"png", "model-2.safetensors": safetensors(2)}
REPO = "demo/tiny-edited"

Push = Callable[..., Published]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture
def push(hub: LocalHub, folder: Path) -> Push:
    def push(**changes: object) -> Published:
        given = {
            "files": folder,
            "repo_id": REPO,
            "kind": "model",
            "token": hub.token,
            "endpoint": hub.endpoint,
            "commit_message": "Publish",
            **changes,
        }
        return publish(**given)  # type: ignore[arg-type]

    return push


def titles(api: HfApi, repo: str = REPO) -> list[str]:
    return [commit.title for commit in api.list_repo_commits(repo)]


def contents(api: HfApi, tmp_path: Path, revision: str | None = None) -> dict[str, bytes]:
    snapshot = Path(
        api.snapshot_download(REPO, revision=revision, cache_dir=tmp_path / "client-cache")
    )
    files = {p.relative_to(snapshot).as_posix(): p for p in snapshot.rglob("*") if p.is_file()}
    return {n: p.read_bytes() for n, p in files.items() if n not in (MANIFEST, ".gitattributes")}


def test_one_private_commit_holds_everything(hub: LocalHub, api: HfApi, push: Push, tmp_path: Path):
    done = push()
    assert contents(api, tmp_path) == FILES
    assert titles(api) == ["Publish", "initial commit"]
    assert (done.repo, done.kind, done.private, done.changed) == (REPO, "model", True, True)
    assert done.commit == api.model_info(REPO).sha
    assert done.url == f"{hub.endpoint}/{REPO}"
    assert set(done.files) == {*FILES, MANIFEST}
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPO, token=hub.add_token("alice"))


def test_the_same_again_changes_nothing_and_uploads_nothing(hub: LocalHub, api: HfApi, push: Push):
    first = push()
    before = len(hub.requests)
    again = push()
    assert (again.commit, again.changed) == (first.commit, False)
    assert titles(api) == ["Publish", "initial commit"]
    written = {r.path for r in hub.requests[before:] if r.method in ("PUT", "POST")}
    assert written == {"/api/validate-yaml"}


def test_own_leftovers_go_and_what_others_added_stays(
    api: HfApi, push: Push, folder: Path, tmp_path: Path
):
    push()
    put(api, REPO, {"theirs.txt": b"theirs"})
    (folder / "model-2.safetensors").unlink()
    (folder / "config.json").write_bytes(b'{"model_type": "qwen2"}')
    push()
    expected = {path: content for path, content in FILES.items() if path != "model-2.safetensors"}
    expected |= {"config.json": b'{"model_type": "qwen2"}', "theirs.txt": b"theirs"}
    assert contents(api, tmp_path) == expected


def test_hidden_files_stay_here(api: HfApi, push: Push, folder: Path, tmp_path: Path):
    (folder / ".env").write_text("SECRET=1")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.txt").write_text("a")
    push()
    assert contents(api, tmp_path) == FILES


def test_visibility(hub: LocalHub, api: HfApi, push: Push):
    push()
    assert push(private=False).private is False
    assert api.model_info(REPO, token=False).private is False
    before = titles(api)
    with pytest.raises(HubError, match=r"is public.*--public"):
        push()
    assert titles(api) == before
    plan = {"repo_id": REPO, "kind": "model", "token": hub.token, "endpoint": hub.endpoint}
    with pytest.raises(HubError, match="is public"):
        plan_publish({"a.txt": Path(__file__)}, **plan)  # type: ignore[arg-type]


def test_a_gated_public_model_is_gated_before_it_is_public(hub: LocalHub, api: HfApi, push: Push):
    push(private=False, gated="manual")
    info = api.model_info(REPO, token=hub.add_token("alice"))
    assert (info.gated, info.private) == ("manual", False)
    settings = [i for i, r in enumerate(hub.requests) if r.path.endswith("/settings")]
    commit = next(i for i, r in enumerate(hub.requests) if "/commit/" in r.path)
    assert len(settings) == 2
    assert commit < settings[0]
    with pytest.raises(HubError, match="cannot be gated"):
        push(repo_id="demo/space", kind="space", gated="auto")


def test_a_space(api: HfApi, push: Push, tmp_path: Path):
    app = tmp_path / "space"
    app.mkdir()
    (app / "app.py").write_text("pass")
    (app / "README.md").write_text("---\ntitle: T\nsdk: gradio\n---\n")
    done = push(files=app, repo_id="demo/space", kind="space", space_sdk="gradio")
    assert done.url.endswith("/spaces/demo/space")
    assert api.space_info("demo/space").sdk == "gradio"


def test_a_pull_request_is_opened_once(api: HfApi, push: Push, folder: Path, tmp_path: Path):
    with pytest.raises(HubError, match=r"no model .* to open a pull request"):
        push(create_pr=True)
    push()
    (folder / "config.json").write_bytes(b'{"model_type": "qwen2"}')
    first = push(create_pr=True)
    again = push(create_pr=True)
    assert first.url.endswith(f"/{REPO}/discussions/1")
    assert (again.commit, again.url, again.changed) == (first.commit, first.url, False)
    assert contents(api, tmp_path)["config.json"] == FILES["config.json"]
    proposed = contents(api, tmp_path, "refs/pr/1")
    assert proposed["config.json"] == b'{"model_type": "qwen2"}'


def test_a_plan_tells_and_changes_nothing(hub: LocalHub, api: HfApi, push: Push, folder: Path):
    where = {"repo_id": REPO, "kind": "model", "token": hub.token, "endpoint": hub.endpoint}
    plan = plan_publish(folder, **where)  # type: ignore[arg-type]
    assert (plan.exists, plan.private, plan.unchanged, plan.delete) == (False, True, 0, ())
    assert {path for path, _ in plan.add} == {*FILES, MANIFEST}
    assert not api.repo_exists(REPO)
    push()
    (folder / "LICENSE").unlink()
    plan = plan_publish(folder, **where)  # type: ignore[arg-type]
    assert (plan.exists, [path for path, _ in plan.add]) == (True, [MANIFEST])
    assert plan.delete == ("LICENSE",)
    assert titles(api) == ["Publish", "initial commit"]


def test_what_must_not_be_published(hub: LocalHub, api: HfApi, push: Push, folder: Path):
    (folder / "optimizer.pt").write_bytes(b"pickle")
    with pytest.raises(HubError, match=r"optimizer.pt is not published"):
        push()
    (folder / "optimizer.pt").unlink()
    hub.add_token("demo", token=SENTINEL)
    (folder / "record.json").write_text(f'{{"command": "push --token {SENTINEL}"}}')
    with pytest.raises(HubError, match="holds your Hub token") as caught:
        push(token=SENTINEL)
    assert SENTINEL not in str(caught.value)
    (folder / "record.json").unlink()
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(HubError, match=r"metadata that the Hub does not accept"):
        push()
    (empty := folder / "empty").mkdir()
    with pytest.raises(HubError, match="nothing to publish"):
        push(files=empty)
    assert not api.repo_exists(REPO)


def test_who_may_not_write_is_told_why(hub: LocalHub, api: HfApi, push: Push):
    with pytest.raises(HubError, match=r"not let this token write.*write permission"):
        push(token=hub.add_token("demo", role="read"))
    with pytest.raises(HubError, match="not let this token write"):
        push(token=hub.add_token("alice"))
    with pytest.raises(HubError, match=r"does not know who you are.*hf auth login"):
        push(token="hf_thatnobodyhas")
    with pytest.raises(HubError, match=r"Hub account.*no token"):
        namespace(endpoint=hub.endpoint)
    with pytest.raises(HubError, match="does not know who you are"):
        namespace(token="hf_thatnobodyhas", endpoint=hub.endpoint)
    assert namespace(token=hub.token, endpoint=hub.endpoint) == "demo"
    with pytest.raises(HubError, match="not the name of a repository"):
        push(repo_id="demo/a/b")
    assert not api.repo_exists(REPO)


def test_tags_and_collections(hub: LocalHub, api: HfApi, push: Push):
    put(api, "demo/tiny", MODEL_FILES)
    done = push()
    at = {"token": hub.token, "endpoint": hub.endpoint}
    for _ in range(2):
        assert tag_commit(done, "abl-hub-0.1.0", **at) == "abl-hub-0.1.0"
        url = collect([done], title="Tiny, edited", base="demo/tiny", **at)
    (tag,) = api.list_repo_refs(REPO).tags
    assert (tag.name, tag.target_commit) == ("abl-hub-0.1.0", done.commit)
    made = api.get_collection(url.split("/collections/")[1])
    assert [item.item_id for item in made.items] == ["demo/tiny", REPO]
    assert made.private


def test_a_hub_that_asks_for_too_long_is_not_waited_for(hub: LocalHub, push: Push):
    busy = Fault(kind="status", status=429, headers={"Retry-After": "3600"}, times=None)
    with hub.faults.set(busy), pytest.raises(HubError, match=r"slow down.*in 3600 s"):
        push()


def test_someone_elses_commit_in_between_is_built_upon(
    hub: LocalHub, api: HfApi, push: Push, no_waiting: None, tmp_path: Path
):
    put(api, REPO, {"theirs.txt": b"theirs"})
    moved = Fault(kind="status", status=412, path="/commit/", message="A commit has happened since")
    with hub.faults.set(moved):
        push()
    assert contents(api, tmp_path) == {**FILES, "theirs.txt": b"theirs"}


CURABLE = (
    Fault(kind="status", status=409),
    Fault(kind="status", status=412),
    Fault(kind="status", status=429, headers={"Retry-After": "0"}),
    Fault(kind="status", status=500),
    Fault(kind="status", status=503),
    Fault(kind="drop"),
    Fault(kind="lose"),
    Fault(kind="truncate"),
    Fault(kind="slow", seconds=0.05),
)
LASTING = tuple(Fault(kind="status", status=status) for status in (401, 403, 404))


def _name(fault: Fault) -> str:
    return f"{fault.kind}-{fault.status}" if fault.kind == "status" else fault.kind


class Sweep:
    """A push with a fault at its n-th request, for every n; what is left is checked each time."""

    def __init__(self, hub: LocalHub, api: HfApi, push: Push, folder: Path) -> None:
        self.hub, self.api, self.push, self.folder = hub, api, push, folder
        hub.add_token("demo", token=SENTINEL)
        for name in set(FILES) - {"README.md", "config.json", "model.safetensors"}:
            (folder / name).unlink()
        self.paths = {"README.md", "config.json", "model.safetensors", MANIFEST}

    def run(self, fault: Fault) -> list[AblHubError]:
        """The errors that reached the user."""
        start = len(self.hub.requests)
        self._push("demo/clean")
        requests = len(self.hub.requests) - start
        assert requests > 8
        told = []
        for at in range(requests):
            repo = f"demo/swept-{at}"
            # Its own weights, so that they must be uploaded every time.
            (self.folder / "model.safetensors").write_bytes(safetensors(1 + at))
            with self.hub.faults.set(replace(fault, skip=at)):
                try:
                    self._push(repo)
                except AblHubError as error:
                    told.append(error)
                    self._check_nothing_half_done(repo)
                    self._push(repo)
            assert titles(self.api, repo) == ["Publish", "initial commit"]
            assert self._files(repo) == self.paths
            assert self.api.model_info(repo).private is False
        return told

    def _push(self, repo: str) -> None:
        self.push(token=SENTINEL, private=False, repo_id=repo)

    def _files(self, repo: str) -> set[str]:
        return set(self.api.list_repo_files(repo)) - {".gitattributes"}

    def _check_nothing_half_done(self, repo: str) -> None:
        if self.api.repo_exists(repo):
            assert self._files(repo) in (set(), self.paths)
            assert self.api.model_info(repo).private


@pytest.fixture
def sweep(hub: LocalHub, api: HfApi, push: Push, folder: Path, no_waiting: None) -> Sweep:
    return Sweep(hub, api, push, folder)


@pytest.mark.parametrize("fault", CURABLE, ids=_name)
def test_a_passing_fault_at_any_request_ends_in_success(
    sweep: Sweep, fault: Fault, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    assert sweep.run(fault) == []
    assert SENTINEL not in caplog.text


@pytest.mark.parametrize("fault", LASTING, ids=_name)
def test_a_refusal_at_any_request_is_one_clear_line_and_a_rerun_finishes(
    sweep: Sweep, fault: Fault, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    told = sweep.run(replace(fault, message=f"refused {SENTINEL}"))
    assert told
    for error in told:
        assert "\n" not in str(error)
        assert SENTINEL not in f"{error!s} {error.__cause__!r}"
    assert SENTINEL not in caplog.text
