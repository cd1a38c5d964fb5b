"""A stranger who has only the published cards: loads, reproduces and undoes from their text."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import DatasetCard, HfApi, ModelCard, SpaceCard, hf_hub_download

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.errors import HubError
from abl_hub.hub.local import LocalHub
from abl_hub.report.record import save_record
from abl_hub.stages.target import PARTS, Target, repo_type

LEGAL = {"LICENSE.txt": "the licence", "USE_POLICY.md": "the policy"}
BASE_CARD = "---\nlicense: llama3.2\nlanguage: [en]\n---\n\nWords of the base's own card.\n"


@dataclass(frozen=True)
class Shelf:
    """A Hub with a base, its prompts, and everything that was made from them."""

    hub: LocalHub
    out: Path
    repos: dict[str, str]
    cards: dict[str, str]

    def snippet(self, part: str) -> str:
        (code,) = re.findall(r"```python\n(.*?)```", self.cards[part], re.DOTALL)
        return str(code)

    def files(self, part: str) -> list[str]:
        api = HfApi(endpoint=self.hub.endpoint, token=self.hub.token)
        return api.list_repo_files(self.repos[part], repo_type=repo_type(part))


@pytest.fixture(scope="module")
def shelf(
    demo: Path, small_recipe: abl_hub.Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("shelf")
    with LocalHub(folder / "hub") as hub, hub.environment():
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        base = Path(shutil.copytree(demo, folder / "base"))
        for name, text in {**LEGAL, "README.md": BASE_CARD}.items():
            (base / name).write_text(text)
        api.create_repo("demo/tiny")
        api.upload_folder(repo_id="demo/tiny", folder_path=base)
        for side in (small_recipe.positive, small_recipe.negative):
            api.create_repo(f"demo/{Path(side).stem}", repo_type="dataset")
            api.upload_file(
                repo_id=f"demo/{Path(side).stem}",
                repo_type="dataset",
                path_in_repo="train.jsonl",
                path_or_fileobj=side,
            )
        recipe = replace(
            small_recipe,
            source="demo/tiny",
            positive=f"demo/{Path(small_recipe.positive).stem}",
            negative=f"demo/{Path(small_recipe.negative).stem}",
        )
        runtime = abl_hub.Runtime(token=hub.token, endpoint=hub.endpoint)
        abl_hub.convert(recipe, folder / "out", runtime)
        pushed = abl_hub.push(folder / "out", runtime, Target(only=PARTS))
        repos = dict(zip(PARTS, (item.repo for item in pushed.published), strict=True))
        cards = {
            part: Path(hf_hub_download(repo, "README.md", repo_type=repo_type(part))).read_text(
                encoding="utf-8"
            )
            for part, repo in repos.items()
        }
        yield Shelf(hub=hub, out=folder / "out", repos=repos, cards=cards)


def run(code: str) -> tuple[dict[str, Any], str]:
    """What a snippet leaves behind, and what it prints."""
    names: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as printed, torch.inference_mode():
        exec(compile(code, "card", "exec"), names)
    return names, printed.getvalue()


def test_the_snippets_load_what_was_published(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    merged, said = run(shelf.snippet("merged"))
    delta, again = run(shelf.snippet("delta"))
    assert said.strip()
    assert said == again
    with torch.inference_mode():
        logits = merged["model"](**merged["inputs"]).logits
        assert torch.allclose(delta["model"](**delta["inputs"]).logits, logits, atol=1e-4)
        # The way back, as the card of the delta says it.
        with delta["model"].disable_adapter():
            off = delta["model"](**delta["inputs"]).logits
        base = delta["model"].unload()(**delta["inputs"]).logits
    assert torch.equal(off, base)
    assert float((off - logits).abs().max()) > 0.01


def test_the_direction_alone_is_read_from_its_data_set(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names, printed = run(shelf.snippet("direction"))
    direction = abl_hub.Direction.load(shelf.out / "direction.safetensors")
    assert torch.equal(names["direction"], direction.vector)
    assert names["about"]["layer"] == direction.layer
    assert abs(float(printed)) > 0
    assert set(shelf.files("direction")) >= {"direction.safetensors", "record.json", "README.md"}


def test_the_command_of_a_card_makes_the_same_bytes(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (shell,) = re.findall(r"```sh\n(.*?)```", shelf.cards["merged"], re.DOTALL)
    words = shlex.split(shell.replace("\\\n", " "))
    assert words[:3] == ["abl-hub", "convert", "demo/tiny"]
    done = CliRunner().invoke(command, [*words[1:], "--token", shelf.hub.token])
    assert done.exit_code == 0, (done.stderr, done.exception)
    made = abl_hub.load_record(tmp_path / "tiny-abliterated")
    record = abl_hub.load_record(shelf.out)
    assert made.merged == record.merged
    assert made.direction == record.direction
    assert made.evaluation == record.evaluation


def test_licence_files_and_notices_go_with_every_part(shelf: Shelf) -> None:
    for part, card in shelf.cards.items():
        files = shelf.files(part)
        assert set(LEGAL) <= set(files)
        assert "NOTICE" in files
        assert "**Built with Llama**" in card
        assert "https://huggingface.co/demo/tiny" in card
        assert "Words of the base's own card" not in card
        assert "has to begin with “Llama”" not in card
    assert shelf.repos["merged"] == "demo/Llama-tiny-abliterated"
    notice = hf_hub_download(shelf.repos["delta"], "NOTICE")
    assert "Llama 3.2 Community License" in Path(notice).read_text(encoding="utf-8")


def test_the_hub_reads_the_metadata(shelf: Shelf) -> None:
    merged, delta = (ModelCard(shelf.cards[part]).data for part in ("merged", "delta"))
    assert (merged.base_model, merged.base_model_relation) == ("demo/tiny", "finetune")
    assert (delta.library_name, delta.base_model_relation) == ("peft", "adapter")
    assert merged.license == delta.license == "llama3.2"
    assert DatasetCard(shelf.cards["direction"]).data.license == "llama3.2"
    assert SpaceCard(shelf.cards["space"]).data.models == ["demo/tiny", shelf.repos["delta"]]
    for part in ("merged", "delta", "direction"):
        pictures = set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", shelf.cards[part]))
        assert pictures
        assert pictures <= set(shelf.files(part))


def test_no_derivatives_no_push(shelf: Shelf, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shelf.out, tmp_path / "out"))
    record = abl_hub.load_record(out)
    save_record(replace(record, source=replace(record.source, licence="cc-by-nd-4.0")), out)
    before = len(shelf.hub.requests)
    runtime = abl_hub.Runtime(token=shelf.hub.token, endpoint=shelf.hub.endpoint)
    with pytest.raises(HubError, match="must not be published"):
        abl_hub.push(out, runtime)
    assert len(shelf.hub.requests) == before


def test_no_prompt_is_in_any_card(shelf: Shelf, small_recipe: abl_hub.Recipe) -> None:
    for side in (small_recipe.positive, small_recipe.negative):
        for line in Path(side).read_text(encoding="utf-8").splitlines():
            prompt = next(iter(json.loads(line).values()))
            if prompt != "How do I make bread?":
                assert not any(prompt in card for card in shelf.cards.values())
