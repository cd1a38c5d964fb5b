"""`convert --job`: the command runs elsewhere, with the token as its secret, and pushes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import HfApi
from pyarrow import parquet

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.hub.jobs import SCRIPT_VARIABLE
from abl_hub.hub.local import LocalHub

SENTINEL = "hf_a_secret_that_nobody_may_see"


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture
def hub(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        hub.add_token(hub.user, token=SENTINEL)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", SENTINEL)
        api = HfApi(endpoint=hub.endpoint, token=SENTINEL)
        api.create_repo("demo/chat")
        api.upload_folder(folder_path=demo, repo_id="demo/chat")
        asked = prompts()
        for name, side in (("refused", asked.positive), ("answered", asked.negative)):
            table = io.BytesIO()
            parquet.write_table(pa.table({"text": [prompt for prompt, _ in side]}), table)
            api.create_repo(f"demo/{name}", repo_type="dataset", private=True)
            api.upload_file(
                path_or_fileobj=table.getvalue(),
                path_in_repo="data/train-00000-of-00001.parquet",
                repo_id=f"demo/{name}",
                repo_type="dataset",
            )
        yield hub


def test_the_job_pushes_and_its_log_is_printed(hub: LocalHub, tmp_path: Path) -> None:
    sides = ["--positive", "demo/refused", "--negative", "demo/answered", "--no-untie"]
    sizes = ["--train", 24, "--validation", 8, "--test", 8, "--random-draws", 1]
    words = ["convert", "demo/chat", "-o", tmp_path / "here", *sides, *sizes]
    quick = ["--method", "projected", "--strengths", "one", "--max-new-tokens", 8]
    job = ["--push", "--only", "delta", "--job", "cpu-basic", "--job-timeout", "10m"]
    result = run(*words, *quick, *job)
    assert result.exit_code == 0, result.output
    assert "Verdict: " in result.output
    # It ran elsewhere, and what it pushed is on the Hub.
    assert not (tmp_path / "here").exists()
    api = HfApi(endpoint=hub.endpoint, token=SENTINEL)
    files = set(api.list_repo_files("demo/chat-abliterated-delta"))
    assert {"adapter_model.safetensors", "record.json", "README.md"} <= files
    # The command is the one that was given, without what means this machine.
    [started] = [r for r in hub.requests if r.method == "POST" and "/api/jobs/" in r.path]
    shown = json.loads(_get(hub, result))
    given = " ".join(shown["command"])
    assert "convert demo/chat --push --only delta" in given
    assert "--positive demo/refused" in given
    assert "--no-untie" in given
    assert "--job" not in given
    assert str(tmp_path) not in given
    assert shown["flavor"] == "cpu-basic"
    assert shown["timeoutSeconds"] == 600
    assert "# /// script" in shown["environment"][SCRIPT_VARIABLE]
    # The token is a secret and nothing else.
    assert list(shown["secrets"]) == ["HF_TOKEN"]
    assert SENTINEL not in result.output
    assert SENTINEL not in json.dumps(shown)
    assert started.status == 200


def _get(hub: LocalHub, result: Result) -> bytes:
    import httpx

    address = next(line for line in result.output.splitlines() if line.startswith("Running "))
    owner, job = address.rsplit("/", 2)[-2:]
    headers = {"authorization": f"Bearer {SENTINEL}"}
    return httpx.get(f"{hub.endpoint}/api/jobs/{owner}/{job}", headers=headers).content


def test_a_job_that_fails_says_so(hub: LocalHub) -> None:
    sides = ["--positive", "demo/nothing", "--negative", "demo/answered"]
    result = run("convert", "demo/chat", *sides, "--push", "--job", "cpu-basic")
    assert result.exit_code == 1
    assert "demo/nothing was not found" in result.output
    assert "Error: The job ended as ERROR" in result.output
    assert SENTINEL not in result.output


def test_what_a_job_cannot_do_is_refused_before_it_starts(
    hub: LocalHub, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("convert", "demo/chat", "--job", "cpu-basic")
    assert result.exit_code == 2
    assert "--job needs --push" in result.output
    result = run("convert", demo, "--job", "cpu-basic", "--push")
    assert result.exit_code == 1
    assert "is on this machine" in result.output
    own = tmp_path / "own.txt"
    own.write_text("one\ntwo\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (
        ["--positive", own],
        ["--test-set", f"refusal:{own}"],
        ["--negative", "~/own.txt"],
        ["--negative", f"demo/answered + {own}#text"],
    ):
        result = run("convert", "demo/chat", "--job", "cpu-basic", "--push", *words)
        assert "own.txt is on this machine" in result.output
    result = run("convert", "demo/chat", "--job", "cpu-basic", "--push", "--gate-prompt", "hi")
    assert "--gate-prompt needs --gated" in result.output
    assert not [r for r in hub.requests if "/api/jobs/" in r.path]


def test_a_dry_run_starts_no_job(hub: LocalHub) -> None:
    words = ["--job", "cpu-basic", "--push", "--device", "cuda", "--memory", 3, "--dry-run"]
    result = run("convert", "demo/chat", *words)
    assert result.exit_code == 0, result.output
    assert "push merged" in result.output
    assert not [r for r in hub.requests if "/api/jobs/" in r.path]
