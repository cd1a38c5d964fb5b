"""What was pushed is fetched again and held to the record, and only then reported as done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from abl_hub.cli.group import abl_hub as command
from abl_hub.hub.local import LocalHub
from tests.on_hub import on_hub


@dataclass(frozen=True)
class Push:
    out: Path
    hub: LocalHub
    home: Path
    """The Hub client's."""

    def __call__(self, *words: str) -> Result:
        line = ["--format", "json", "push", str(self.out), "--token", self.hub.token, *words]
        return CliRunner().invoke(command, line)


@pytest.fixture
def push(small_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Push]:
    out = Path(shutil.copytree(small_output, tmp_path / "here" / "out"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "client"))
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield Push(out=out, hub=hub, home=tmp_path / "client")


def test_it_says_what_came_back_and_leaves_nothing(push: Push) -> None:
    done = push()
    assert done.exit_code == 0, (done.stderr, done.exception)
    document = json.loads(done.stdout)
    loaded = document["loaded_back"]
    shown = sum(len(_files(push.out / part)) for part in ("merged", "delta"))
    assert loaded == {
        "files": shown,
        "prompts": 8,
        "merged_apart": 0.0,
        "delta_apart": 0.0,
    }
    fetched = [r for r in push.hub.requests if r.method == "GET" and "/resolve/" in r.path]
    assert {r.path.split("/resolve/")[1].split("/")[0] for r in fetched} == {
        item["commit"] for item in document["published"]
    }
    assert [path.name for path in push.out.parent.iterdir()] == ["out"]
    assert not push.home.exists()


def test_only_what_was_pushed_is_loaded_back(push: Push) -> None:
    on_hub(push.out, push.hub)
    done = push("--only", "delta")
    loaded = json.loads(done.stdout)["loaded_back"]
    assert (loaded["merged_apart"], loaded["delta_apart"]) == (None, 0.0)
    loaded = json.loads(push("--only", "space").stdout)["loaded_back"]
    assert (loaded["prompts"], loaded["files"]) == (0, len(_files(push.out / "space")))


def test_no_space_of_a_folder(push: Push) -> None:
    """Its base is on this machine alone: there would be nothing that it could load."""
    done = push()
    assert [item["kind"] for item in json.loads(done.stdout)["published"]] == ["model", "model"]
    assert "No space is published: its base is a folder" in done.stderr
    done = push("--only", "space")
    assert done.exit_code == 1
    assert "There is no space to publish: its base is a folder" in done.stderr


def test_what_is_published_names_no_folder_of_this_machine(push: Push) -> None:
    record = json.loads((push.out / "record.json").read_text())
    folder = str(push.out.parent)
    line = f"abl-hub convert ./m --positive '{folder}/a b.txt#c + {folder}/d.txt' -o {folder}/out/"
    record["command"] = line
    record["recipe"]["test_sets"] = [f"refusal:{folder}/t.txt"]
    record["recipe"]["judges"] = [f"classifier:{folder}/judge@main#yes"]
    (push.out / "record.json").write_text(json.dumps(record))
    words = ["merged", "delta", "direction"]
    done = push(*(word for part in words for word in ("--only", part)))
    assert done.exit_code == 0, done.stderr
    source = Path(record["recipe"]["source"])
    for part in words:
        for file in (push.out / part).iterdir():
            if file.suffix in {".json", ".md"}:
                text = file.read_text()
                assert folder not in text, file
                assert str(source.parent) not in text, file
    shown = json.loads((push.out / "merged" / "record.json").read_text())
    assert shown["command"] == "abl-hub convert m --positive 'a b.txt#c + d.txt' -o out"
    assert shown["recipe"]["source"] == shown["source"]["name"] == source.name
    assert shown["recipe"]["positive"] == "refused.jsonl"
    assert shown["recipe"]["test_sets"] == ["refusal:t.txt"]
    assert shown["recipe"]["judges"] == ["classifier:judge@main#yes"]
    adapter = json.loads((push.out / "delta" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == source.name
    assert json.loads((push.out / "record.json").read_text()) == record


@pytest.mark.parametrize(
    ("part", "name"), [("merged", "model.safetensors"), ("delta", "adapter_model.safetensors")]
)
def test_other_bytes_are_not_reported_as_done(push: Push, part: str, name: str) -> None:
    assert push("--only", part).exit_code == 0
    record = json.loads((push.out / "record.json").read_text())
    (sha256,) = (file["sha256"] for file in record[part]["files"] if file["path"] == name)
    stored = push.hub.root / "lfs" / sha256
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    done = push("--only", part)
    assert done.exit_code == 1
    assert f"{name} came back with other bytes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert [path.name for path in push.out.parent.iterdir()] == ["out"]


def test_an_output_that_is_not_its_record_is_not_published(push: Push) -> None:
    (push.out / "delta" / "adapter_config.json").write_text("{}")
    done = push("--only", "delta")
    assert done.exit_code == 1
    assert "adapter_config.json is not published: it is not the file of the record" in done.stderr
    assert not push.hub.requests or all(r.method == "GET" for r in push.hub.requests)


def test_nothing_is_published_that_could_not_be_judged(push: Push) -> None:
    record = json.loads((push.out / "record.json").read_text())
    record["recipe"]["positive"] = str(push.out / "gone.jsonl")
    (push.out / "record.json").write_text(json.dumps(record))
    done = push()
    assert done.exit_code == 1
    assert "gone.jsonl" in done.stderr
    assert not push.hub.requests or all(r.method == "GET" for r in push.hub.requests)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
