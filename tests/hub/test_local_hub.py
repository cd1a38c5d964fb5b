"""The real client against the local Hub, over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    model_info,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from abl_hub.errors import HubError
from abl_hub.hub.local import Fault, LocalHub
from tests.hub.tiny_repos import MODEL_FILES, put, safetensors


def test_what_was_pushed_comes_back_at_its_commit(hub: LocalHub, api: HfApi, tmp_path: Path):
    commit = put(api, "demo/tiny", {**MODEL_FILES, "sub folder/ä.txt": b"text"})
    folder = Path(
        snapshot_download(
            "demo/tiny", endpoint=hub.endpoint, token=hub.token, cache_dir=tmp_path / "cache"
        )
    )
    assert folder.name == commit
    for path, content in MODEL_FILES.items():
        assert (folder / path).read_bytes() == content
    assert (folder / "sub folder/ä.txt").read_bytes() == b"text"
    tree = {f.path: f for f in api.list_repo_tree("demo/tiny", recursive=True)}
    assert tree["model.safetensors"].lfs is not None
    assert tree["config.json"].lfs is None
    assert [f.path for f in api.list_repo_tree("demo/tiny", "sub folder")] == ["sub folder/ä.txt"]


def test_a_private_repository_is_invisible_to_others(hub: LocalHub, api: HfApi):
    put(api, "demo/secret", MODEL_FILES)
    assert api.model_info("demo/secret").private
    for token in (hub.add_token("alice"), False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("demo/secret", token=token)
    assert [m.id for m in api.list_models(token=False)] == []
    api.update_repo_settings("demo/secret", private=False)
    assert api.model_info("demo/secret", token=False).private is False
    assert [m.id for m in api.list_models(token=False)] == ["demo/secret"]


def test_a_gated_repository_shows_its_card_but_not_its_weights(hub: LocalHub, api: HfApi):
    put(api, "demo/gated", MODEL_FILES)
    api.update_repo_settings("demo/gated", private=False, gated="manual")
    stranger = HfApi(endpoint=hub.endpoint, token=hub.add_token("alice"))
    assert stranger.model_info("demo/gated").gated == "manual"
    stranger.hf_hub_download("demo/gated", "README.md")
    with pytest.raises(GatedRepoError):
        stranger.hf_hub_download("demo/gated", "model.safetensors")
    with pytest.raises(GatedRepoError):
        stranger.auth_check("demo/gated")
    api.auth_check("demo/gated")


def test_only_the_owner_with_a_write_token_may_write(hub: LocalHub, api: HfApi):
    put(api, "demo/mine", MODEL_FILES)
    api.update_repo_settings("demo/mine", private=False)
    reader = hub.add_token("demo", role="read")
    for token, status in ((reader, 403), (hub.add_token("alice"), 403), ("hf_nobody", 401)):
        with pytest.raises(HfHubHTTPError) as caught:
            api.upload_file(
                repo_id="demo/mine", path_in_repo="a", path_or_fileobj=b"a", token=token
            )
        assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="rights to write"):
        api.create_repo("alice/hers")


def test_what_is_missing_is_told_apart(api: HfApi):
    put(api, "demo/tiny", MODEL_FILES)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("demo/none")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("demo/tiny", revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("demo/tiny", "none.json")


def test_a_commit_is_made_whole_or_not_at_all(api: HfApi):
    first = put(api, "demo/tiny", MODEL_FILES)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(
            "demo/tiny",
            [
                CommitOperationAdd("new.txt", b"new"),
                CommitOperationDelete("none.txt"),
            ],
            commit_message="half",
        )
    assert caught.value.response.status_code == 404
    assert api.model_info("demo/tiny").sha == first
    api.upload_file(repo_id="demo/tiny", path_in_repo="a.txt", path_or_fileobj=b"a")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(
            "demo/tiny",
            [CommitOperationAdd("b.txt", b"b")],
            commit_message="late",
            parent_commit=first,
        )
    assert caught.value.response.status_code == 412
    titles = [commit.title for commit in api.list_repo_commits("demo/tiny")]
    assert titles == ["Upload a.txt with huggingface_hub", "Add files", "initial commit"]


def test_pull_requests_tags_branches_and_copies(hub: LocalHub, api: HfApi):
    commit = put(api, "demo/tiny", MODEL_FILES)
    proposed = api.create_commit(
        "demo/tiny", [CommitOperationAdd("pr.txt", b"pr")], commit_message="PR", create_pr=True
    )
    assert proposed.pr_num == 1
    assert not api.file_exists("demo/tiny", "pr.txt")
    assert api.file_exists("demo/tiny", "pr.txt", revision="refs/pr/1")
    assert [d.num for d in api.get_repo_discussions("demo/tiny", discussion_status="open")] == [1]
    api.merge_pull_request("demo/tiny", 1)
    assert api.get_discussion_details("demo/tiny", 1).status == "merged"
    assert api.file_exists("demo/tiny", "pr.txt")

    api.create_tag("demo/tiny", tag="v1", revision=commit)
    api.create_tag("demo/tiny", tag="v1", exist_ok=True)
    api.create_branch("demo/tiny", branch="side/line", revision=commit)
    refs = api.list_repo_refs("demo/tiny", include_pull_requests=True)
    assert [(t.name, t.target_commit) for t in refs.tags] == [("v1", commit)]
    assert {b.name for b in refs.branches} == {"main", "side/line"}
    assert [p.ref for p in refs.pull_requests or []] == ["refs/pr/1"]

    api.create_repo("demo/copy", private=True)
    api.create_commit(
        "demo/copy",
        [
            CommitOperationCopy(path, path, src_repo_id="demo/tiny", src_repo_type="model")
            for path in ("model.safetensors", "config.json")
        ],
        commit_message="Copy",
    )
    assert set(api.list_repo_files("demo/copy")) >= {"model.safetensors", "config.json"}
    api.duplicate_repo("demo/tiny", "demo/twin", private=True)
    assert "model.safetensors" in api.list_repo_files("demo/twin")
    api.delete_repo("demo/twin")
    assert not api.repo_exists("demo/twin")


def test_spaces_keep_variables_and_forget_secrets(hub: LocalHub, api: HfApi):
    api.create_repo(
        "demo/space",
        repo_type="space",
        space_sdk="gradio",
        private=True,
        space_secrets=[{"key": "A", "value": "secret-value"}],
    )
    api.add_space_secret("demo/space", "B", "secret-value")
    api.add_space_variable("demo/space", "MODEL", "demo/tiny")
    assert set(api.get_space_secrets("demo/space")) == {"A", "B"}
    assert api.get_space_variables("demo/space")["MODEL"].value == "demo/tiny"
    api.request_space_hardware("demo/space", "zero-a10g")
    api.upload_file(
        repo_id="demo/space", repo_type="space", path_in_repo="app.py", path_or_fileobj=b"pass"
    )
    runtime = api.get_space_runtime("demo/space")
    assert (runtime.stage, runtime.hardware) == ("RUNNING", "zero-a10g")
    assert api.pause_space("demo/space").stage == "PAUSED"
    kept = b"".join(p.read_bytes() for p in hub.root.rglob("*") if p.is_file())
    assert b"demo/space" in kept
    assert b"secret-value" not in kept


def test_collections(api: HfApi):
    put(api, "demo/tiny", MODEL_FILES)
    made = api.create_collection("Tiny & edited", private=True)
    assert api.create_collection("Tiny & edited", exists_ok=True).slug == made.slug
    api.add_collection_item(made.slug, "demo/tiny", "model", note="the base")
    api.add_collection_item(made.slug, "demo/tiny", "model", exists_ok=True)
    (item,) = api.get_collection(made.slug).items
    assert (item.item_id, item.item_type, item.note) == ("demo/tiny", "model", "the base")
    with pytest.raises(HfHubHTTPError):
        api.add_collection_item(made.slug, "demo/none", "model")
    api.delete_collection(made.slug)
    with pytest.raises(HfHubHTTPError):
        api.get_collection(made.slug)


def test_the_metadata_of_a_card_is_checked_and_shown(api: HfApi):
    card = b"---\nbase_model: demo/base\nbase_model_relation: adapter\nlicense: mit\n---\n"
    put(api, "demo/tiny", {"README.md": card})
    info = api.model_info("demo/tiny")
    assert "base_model:adapter:demo/base" in (info.tags or [])
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    with pytest.raises((ValueError, BadRequestError), match="Invalid metadata"):
        put(api, "demo/tiny", {"README.md": b"---\na: [\n---\n"})


def test_state_survives_a_restart(tmp_path: Path):
    with LocalHub(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        commit = put(api, "demo/tiny", MODEL_FILES)
        slug = api.create_collection("Kept").slug
    with LocalHub(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.model_info("demo/tiny").sha == commit
        assert api.get_collection(slug).title == "Kept"
        got = httpx.get(
            f"{hub.endpoint}/demo/tiny/resolve/main/model.safetensors",
            headers={"authorization": f"Bearer {hub.token}", "range": "bytes=0-7"},
        )
        assert got.status_code == 206
        assert got.content == safetensors()[:8]


def test_environment_turns_this_process_to_the_hub_and_back(hub: LocalHub, api: HfApi):
    put(api, "demo/tiny", MODEL_FILES)
    before = (constants.ENDPOINT, constants.HF_HUB_CACHE, os.environ.get("HF_TOKEN"))
    with hub.environment():
        assert model_info("demo/tiny").private
        path = Path(hf_hub_download("demo/tiny", "config.json"))
        assert path.is_relative_to(hub.root)
    assert before == (constants.ENDPOINT, constants.HF_HUB_CACHE, os.environ.get("HF_TOKEN"))


def test_transformers_and_datasets_load_from_the_hub(hub: LocalHub, api: HfApi):
    from datasets import load_dataset
    from transformers import AutoConfig

    put(api, "demo/tiny", {**MODEL_FILES, "config.json": b'{"model_type": "gpt2", "n_layer": 3}'})
    put(api, "demo/lines", {"train.jsonl": b'{"text": "a"}\n'}, kind="dataset")
    with hub.environment():
        assert AutoConfig.from_pretrained("demo/tiny").n_layer == 3
        assert load_dataset("demo/lines", split="train")["text"][:] == ["a"]


def test_variables_turn_another_process_to_the_hub(hub: LocalHub, api: HfApi):
    put(api, "demo/tiny", MODEL_FILES)
    script = "import huggingface_hub as h; print(h.model_info('demo/tiny').sha, h.whoami()['name'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **hub.variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [api.model_info("demo/tiny").sha, "demo"]


def test_a_taken_port_is_refused(hub: LocalHub, tmp_path: Path):
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with pytest.raises(HubError, match="could not listen"), LocalHub(tmp_path / "b", port=port):
        pass


def test_faults(hub: LocalHub, api: HfApi):
    put(api, "demo/tiny", MODEL_FILES)
    url = f"{hub.endpoint}/api/models/demo/tiny"
    headers = {"authorization": f"Bearer {hub.token}"}
    refusal = Fault(kind="status", status=429, headers={"Retry-After": "3"}, path="tiny", skip=1)
    with hub.faults.set(refusal):
        statuses = [httpx.get(url, headers=headers) for _ in range(3)]
        assert [r.status_code for r in statuses] == [200, 429, 200]
        assert statuses[1].headers["retry-after"] == "3"
    with hub.faults.set(Fault(kind="drop")), pytest.raises(httpx.TransportError):
        httpx.get(url, headers=headers)
    with (
        hub.faults.set(Fault(kind="truncate")),
        pytest.raises(httpx.RemoteProtocolError, match="without sending complete"),
    ):
        httpx.get(url, headers=headers)
    with hub.faults.set(Fault(kind="slow", seconds=0.5)), pytest.raises(httpx.ReadTimeout):
        httpx.get(url, headers=headers, timeout=0.1)
    create = f"{hub.endpoint}/api/repos/create"
    with hub.faults.set(Fault(kind="lose", method="POST")), pytest.raises(httpx.TransportError):
        httpx.post(create, headers=headers, json={"name": "lost"})
    assert api.repo_exists("demo/lost")
    assert httpx.get(url, headers=headers).status_code == 200


def test_the_log_has_no_tokens(hub: LocalHub, api: HfApi):
    api.whoami()
    assert [(r.method, r.path, r.status) for r in hub.requests][-1] == (
        "GET",
        "/api/whoami-v2",
        200,
    )
    assert hub.token not in repr(hub.requests)


def test_lists_of_other_things_are_not_there(hub: LocalHub):
    """The client asks for a list of agents when it first sends a request."""
    assert httpx.get(f"{hub.endpoint}/api/agents").status_code == 404
    assert httpx.get(f"{hub.endpoint}/api/models").json() == []
