"""What becomes of a Hub id or a folder: the right files, pinned, or a clear refusal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from abl_hub.errors import AblHubError, HubError, SourceError
from abl_hub.hub.local import Fault, LocalHub
from abl_hub.hub.source import Source, plan_source, resolve_source
from tests.hub.tiny_repos import MODEL_FILES, SENTINEL, put, safetensors

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHARDED: dict[str, bytes] = {
    **{path: content for path, content in MODEL_FILES.items() if path != "model.safetensors"},
    SHARDS[0]: safetensors(1),
    SHARDS[1]: safetensors(2),
    "model.safetensors.index.json": json.dumps(
        {"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    ).encode(),
}
NOT_THE_MODEL: dict[str, bytes] = {
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"gguf",
    "training_args.bin": b"pickle",
    "tokenizer.pkl": b"pickle",
    "consolidated.safetensors": safetensors(9),
    "adapter_model.safetensors": safetensors(9),
    "original/model.safetensors": safetensors(9),
    "original/config.json": b"{}",
    "modeling_tiny.py": b"raise SystemExit",
    "image.png": b"png",
}


def resolve(hub: LocalHub, tmp_path: Path, source: str = "demo/tiny", **options: object) -> Source:
    given = {
        "token": hub.token,
        "endpoint": hub.endpoint,
        "cache_dir": tmp_path / "cache",
        **options,
    }
    return resolve_source(source, **given)  # type: ignore[arg-type]


def downloaded(tmp_path: Path) -> set[str]:
    snapshots = (tmp_path / "cache").glob("models--*/snapshots/*")
    return {p.relative_to(s).as_posix() for s in snapshots for p in s.rglob("*") if p.is_file()}


def test_the_folder_where_one_stands_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for path, content in MODEL_FILES.items():
        (here / path).write_bytes(content)
    monkeypatch.chdir(here)
    for given, name in ((".", str(here)), ("../here", "../here")):
        assert resolve_source(given).name == plan_source(given).name == name


@pytest.mark.parametrize("files", [MODEL_FILES, SHARDED], ids=["single", "sharded"])
def test_only_what_makes_the_model_is_downloaded(
    hub: LocalHub, api: HfApi, tmp_path: Path, files: dict[str, bytes]
):
    commit = put(api, "demo/tiny", {**files, **NOT_THE_MODEL})
    source = resolve(hub, tmp_path)
    assert source.commit == source.folder.name == commit
    assert (source.name, source.repo, source.revision) == ("demo/tiny", "demo/tiny", None)
    assert [file.path for file in source.files] == sorted(files)
    assert downloaded(tmp_path) == set(files)
    for file in source.files:
        assert file.size == len(files[file.path])
        if file.path.endswith(".safetensors"):
            assert file.sha256 == hashlib.sha256(files[file.path]).hexdigest()
    assert source.licence.id == "apache-2.0"
    assert source.licence.files == ("LICENSE",)


def test_code_comes_only_when_asked_for(hub: LocalHub, api: HfApi, tmp_path: Path):
    put(api, "demo/tiny", {**MODEL_FILES, **NOT_THE_MODEL})
    source = resolve(hub, tmp_path, trust_remote_code=True)
    assert "modeling_tiny.py" in {file.path for file in source.files}
    assert "pytorch_model.bin" not in downloaded(tmp_path)


def test_a_revision_is_pinned(hub: LocalHub, api: HfApi, tmp_path: Path):
    first = put(api, "demo/tiny", MODEL_FILES)
    api.create_tag("demo/tiny", tag="v1", revision=first)
    second = put(api, "demo/tiny", {"config.json": b'{"model_type": "other"}'})
    assert resolve(hub, tmp_path, revision="v1").commit == first
    assert resolve(hub, tmp_path, revision=first).commit == first
    assert resolve(hub, tmp_path).commit == second


def test_a_folder_is_named_by_its_hashes(tmp_path: Path):
    folder = tmp_path / "model"
    for path, content in {**SHARDED, **NOT_THE_MODEL}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    source = resolve_source(str(folder))
    assert source.repo is source.commit is None
    assert {f.path: f.sha256 for f in source.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in SHARDED.items()
    }
    assert source.licence.id == "apache-2.0"
    with pytest.raises(SourceError, match="has no revisions"):
        resolve_source(str(folder), revision="main")


def test_a_plan_downloads_only_the_configuration_and_the_card(
    hub: LocalHub, api: HfApi, tmp_path: Path
):
    put(api, "demo/tiny", SHARDED)
    options = {"token": hub.token, "endpoint": hub.endpoint, "cache_dir": tmp_path / "cache"}
    plan = plan_source("demo/tiny", **options)  # type: ignore[arg-type]
    assert downloaded(tmp_path) == {"README.md", "config.json", "model.safetensors.index.json"}
    assert (plan.config_folder / "config.json").is_file()
    assert plan.weight_bytes == sum(len(SHARDED[shard]) for shard in SHARDS)
    assert plan.download_files == len(SHARDED) - 3
    resolve(hub, tmp_path)
    again = plan_source("demo/tiny", **options)  # type: ignore[arg-type]
    assert (again.download_files, again.download_bytes) == (0, 0)


def without(*paths: str) -> dict[str, bytes]:
    return {path: content for path, content in MODEL_FILES.items() if path not in paths}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {**without("model.safetensors"), **NOT_THE_MODEL},
            r"no safetensors weights.*found adapter_model.safetensors, consolidated.safetensors",
        ),
        ({**without("model.safetensors"), "pytorch_model.bin": b"p"}, "found pytorch_model.bin"),
        (without("model.safetensors"), "found no weights at all"),
        (without("config.json"), "has no config.json"),
        (
            {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors()},
            "an adapter.*base model",
        ),
        ({k: v for k, v in SHARDED.items() if k != SHARDS[1]}, f"incomplete.*{SHARDS[1]}"),
        ({**SHARDED, "model.safetensors.index.json": b"[]"}, "not an index"),
        (
            {
                **SHARDED,
                "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}',
            },
            "incomplete",
        ),
    ],
)
def test_a_repository_without_a_usable_model_is_refused(
    hub: LocalHub, api: HfApi, tmp_path: Path, files: dict[str, bytes], told: str
):
    put(api, "demo/tiny", files)
    with pytest.raises(SourceError, match=told):
        resolve(hub, tmp_path)


def test_who_may_not_read_is_told_why(hub: LocalHub, api: HfApi, tmp_path: Path):
    put(api, "demo/tiny", MODEL_FILES)
    stranger = hub.add_token("alice")
    with pytest.raises(SourceError, match=r"was not found.*no access to it"):
        resolve(hub, tmp_path, token=stranger)
    with pytest.raises(SourceError, match="was not found"):
        resolve(hub, tmp_path, "demo/none")
    with pytest.raises(SourceError, match=r"no revision 'v9'.*branches and tags"):
        resolve(hub, tmp_path, revision="v9")
    api.update_repo_settings("demo/tiny", private=False, gated="auto")
    with pytest.raises(SourceError, match=r"gated.*Accept them at http"):
        resolve(hub, tmp_path, token=stranger)
    with pytest.raises(HubError, match=r"does not know who you are.*hf auth login"):
        resolve(hub, tmp_path, token="hf_thatnobodyhas")


@pytest.mark.parametrize("source", ["./none", "/none/at/all", "a/b/c", "~/none"])
def test_a_folder_that_is_not_there(source: str):
    with pytest.raises(SourceError, match="There is no folder"):
        resolve_source(source)


def test_a_token_that_may_not_read_is_not_told_about_writing(
    hub: LocalHub, api: HfApi, tmp_path: Path
):
    put(api, "demo/tiny", MODEL_FILES)
    fault = Fault(kind="status", status=403, path="/api/models", times=None)
    with hub.faults.set(fault), pytest.raises(SourceError, match="let this token read"):
        resolve(hub, tmp_path)


def test_an_interrupted_download_is_told_and_finished_later(
    hub: LocalHub, api: HfApi, tmp_path: Path, no_waiting: None
):
    put(api, "demo/tiny", MODEL_FILES)
    lost = Fault(kind="drop", path="resolve/.*/model.safetensors", times=None)
    with hub.faults.set(lost), pytest.raises(HubError, match=r"connection.*lost.*is kept"):
        resolve(hub, tmp_path)
    assert not (downloaded(tmp_path) & {"model.safetensors"})
    truncated = Fault(kind="truncate", method="GET", path="resolve/.*/model.safetensors")
    with hub.faults.set(truncated):
        source = resolve(hub, tmp_path)
    assert (source.folder / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


def test_a_hub_that_is_not_there(tmp_path: Path):
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 cannot be reached.*\./model"):
        resolve_source("demo/tiny", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)


def test_no_message_has_the_token(hub: LocalHub, api: HfApi, tmp_path: Path, no_waiting: None):
    put(api, "demo/tiny", MODEL_FILES)
    hub.add_token("alice", token=SENTINEL)
    told: list[AblHubError] = []
    for status in (400, 401, 403, 404, 409, 412, 429, 500):
        fault = Fault(kind="status", status=status, message=f"no, {SENTINEL}!", times=None)
        with hub.faults.set(fault), pytest.raises(AblHubError) as caught:
            resolve(hub, tmp_path, token=SENTINEL)
        told.append(caught.value)
    assert "no, hf_***!" in str(told[0])
    for error in told:
        linked: BaseException | None = error
        while linked is not None:
            assert SENTINEL not in f"{linked!s} {linked!r}"
            linked = linked.__cause__ or linked.__context__


def test_offline_means_what_was_downloaded_before(
    hub: LocalHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(api, "demo/tiny", MODEL_FILES)
    online = resolve(hub, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = resolve(hub, tmp_path)
    assert (offline.commit, offline.folder) == (online.commit, online.folder)
    with pytest.raises(SourceError, match="not in the local cache"):
        resolve(hub, tmp_path, "demo/none")
