"""`chat user/repo` and the folder of `space user/repo`: from the Hub, and data alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import answer
from abl_hub.errors import SourceError
from abl_hub.hub.local import LocalHub
from abl_hub.resources import templates
from abl_hub.stages.compare import compare_folder
from abl_hub.stages.push import push
from abl_hub.stages.target import Target
from tests.on_hub import on_hub

REFUSED = "How do I make a flying carpet?"


@pytest.fixture(scope="module")
def published(
    small_recipe: abl_hub.Recipe, tmp_path_factory: pytest.TempPathFactory, local_hub: LocalHub
) -> dict[str, str]:
    """A delta and its Space on the local Hub."""
    out = tmp_path_factory.mktemp("shown") / "out"
    abl_hub.convert(replace(small_recipe, methods=("projected",)), out)
    on_hub(out, local_hub, "shown-base")
    runtime = abl_hub.Runtime(token=local_hub.token, endpoint=local_hub.endpoint)
    names = {"delta_repo": "shown-delta", "space_repo": "shown-compare"}
    pushed = push(out, runtime, Target(only=("delta", "space"), **names))
    return {
        part: done.repo for part, done in zip(("delta", "space"), pushed.published, strict=True)
    }


@pytest.mark.parametrize("part", ["delta", "space"])
def test_chat_with_what_is_on_the_hub(
    part: str,
    published: dict[str, str],
    demo: Path,
    local_hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    words = ["chat", published[part], "--base", str(demo)]
    result = CliRunner().invoke(command, words, input=f"{REFUSED}\n/quit\n")
    assert result.exit_code == 0, result.output
    base, edited = result.stdout.splitlines()
    assert base.startswith("base    ")
    assert edited == f"edited  {answer('a flying carpet')}"


def test_a_strangers_program_is_not_run_and_not_fetched(
    published: dict[str, str], demo: Path, tmp_path: Path, local_hub: LocalHub
) -> None:
    api = HfApi(endpoint=local_hub.endpoint, token=local_hub.token)
    space = published["space"]
    for name in ("app.py", "pair.py"):
        api.upload_file(
            path_or_fileobj=b"raise SystemExit('a stranger was here')",
            path_in_repo=name,
            repo_id=space,
            repo_type="space",
        )
    runtime = abl_hub.Runtime(
        token=local_hub.token, endpoint=local_hub.endpoint, cache_dir=tmp_path / "cache"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = compare_folder(space, scratch, runtime, base=str(demo))
    for name in ("app.py", "pair.py", "room.py", "view.py"):
        ours = templates("spaces") / "compare" / name
        assert (folder / name).read_bytes() == ours.read_bytes()
    config = json.loads((folder / "space.json").read_text())
    assert config["base"] == str(demo)
    assert not list((tmp_path / "cache").rglob("*.py"))
    assert sorted(path.name for path in (folder / "plots").iterdir())


def test_what_is_neither_is_refused_in_one_line(
    small_output: Path, tmp_path: Path, local_hub: LocalHub
) -> None:
    runtime = abl_hub.Runtime(token=local_hub.token, endpoint=local_hub.endpoint)
    out = Path(shutil.copytree(small_output, tmp_path / "out"))
    [delta] = push(out, runtime, Target(only=("delta",), delta_repo="of-a-folder")).published
    with pytest.raises(SourceError, match=r"was made from a folder.*--base"):
        compare_folder(delta.repo, tmp_path, runtime)
    with pytest.raises(SourceError, match="neither a delta nor a Space"):
        compare_folder(f"{local_hub.user}/none", tmp_path, runtime)
    api = HfApi(endpoint=local_hub.endpoint, token=local_hub.token)
    other = f"{local_hub.user}/hostile-compare"
    api.create_repo(other, repo_type="space", space_sdk="gradio")
    for named in ("../../somewhere", "/etc/passwd", 7):
        api.upload_file(
            path_or_fileobj=json.dumps({"delta": named}).encode(),
            path_in_repo="space.json",
            repo_id=other,
            repo_type="space",
        )
        with pytest.raises(SourceError, match=r"names no delta"):
            compare_folder(other, tmp_path, runtime)
