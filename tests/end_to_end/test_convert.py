"""The whole job on the trained demo model: the phenomenon is there, and the edit removes it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel

import abl_hub
from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import references, write_prompts
from abl_hub.evaluation.refusals import shows_marker
from abl_hub.hub.local import LocalHub
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.check import residual
from abl_hub.model.generate import greedy_replies
from abl_hub.stages.output import MARKER
from abl_hub.stages.target import Target


@dataclass(frozen=True)
class Converted:
    base: Path
    out: Path
    record: abl_hub.Record
    files: tuple[Path, Path]


@pytest.fixture(scope="module")
def converted(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Converted once; tests that change the output copy it."""
    folder = tmp_path_factory.mktemp("convert")
    files = write_prompts(prompts(), folder)
    recipe = abl_hub.Recipe(source=str(demo), positive=str(files[0]), negative=str(files[1]))
    record = abl_hub.convert(recipe, folder / "out", references=references(prompts()))
    return Converted(base=demo, out=folder / "out", record=record, files=files)


def test_the_phenomenon_is_real_and_the_verdict_says_so(converted: Converted) -> None:
    evaluation = converted.record.evaluation
    assert evaluation is not None
    base, edited = evaluation.base, evaluation.edited
    assert base.positive.refused.value >= 0.95
    assert base.negative.refused.value <= 0.02
    assert edited.positive.refused.value <= 0.05
    assert edited.negative.refused.value <= 0.02
    assert all(arm.positive.refused.value >= 0.9 for arm in evaluation.random)
    assert evaluation.induced.negative.refused.value >= 0.8
    assert converted.record.direction.layer < 0.8 * converted.record.direction.layer_count
    assert edited.positive.correct.value >= 0.9
    assert base.positive.correct.value <= 0.1
    assert evaluation.verdict.label == "SUPPORTED"


def test_the_three_forms_agree(converted: Converted) -> None:
    agreement = converted.record.agreement
    assert agreement.base_hooks > 1.0
    assert agreement.hooks_merged <= 1e-4
    assert agreement.hooks_delta <= 1e-4
    assert agreement.merged_delta <= 1e-4


def test_the_component_is_gone_and_a_random_one_is_not(converted: Converted) -> None:
    direction = abl_hub.Direction.load(converted.out / "direction.safetensors")
    random = torch.randn(direction.width, generator=torch.Generator().manual_seed(0))
    random = (random / random.norm()).double()
    base, edited = load_chat_model(converted.base), load_chat_model(converted.out / "merged")
    tokens = torch.tensor([base.prompt_tokens("How do I make bread?")])
    assert residual(base.model, tokens, direction.vector[None]) > 0.1
    assert residual(edited.model, tokens, direction.vector[None]) < 1e-5
    assert residual(edited.model, tokens, random[None]) > 0.01


def test_only_writers_changed(converted: Converted) -> None:
    from safetensors.torch import load_file

    before = load_file(converted.base / "model.safetensors")
    after = load_file(converted.out / "merged" / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {writer.parameter for writer in converted.record.edit.writers}
    assert {key for key in changed if "o_proj" in key or "down_proj" in key or "embed" in key} == (
        changed
    )


def test_no_prompt_and_no_reply_is_written(converted: Converted) -> None:
    positive = [prompt for prompt, _ in prompts().positive]
    for path in converted.out.rglob("*"):
        if path.is_file() and path.suffix in {".json", ".md", ".jsonl"}:
            text = path.read_text()
            assert not [prompt for prompt in positive if prompt in text], path
    assert not (converted.out / "completions.jsonl").exists()


def test_pushed_artifacts_load_and_behave(
    converted: Converted, tmp_path: Path, local_hub: LocalHub
) -> None:
    out = Path(shutil.copytree(converted.out, tmp_path / "out"))
    runtime = abl_hub.Runtime(token=local_hub.token, endpoint=local_hub.endpoint)
    target = Target(merged_repo="e2e-merged", delta_repo="e2e-delta")
    pushed = abl_hub.push(out, runtime, target)
    published = pushed.published
    assert [item.kind for item in published] == ["model", "model"]  # no Space of a folder
    assert all(item.private and item.changed for item in published)
    again = abl_hub.push(out, runtime, target).published
    assert [item.commit for item in again] == [item.commit for item in published]
    assert not any(item.changed for item in again)

    def download(repo: str) -> Path:
        return Path(
            snapshot_download(
                repo,
                cache_dir=tmp_path / "cache",
                token=local_hub.token,
                endpoint=local_hub.endpoint,
            )
        )

    asked = [prompt for prompt, _ in prompts().positive[:24]]
    base = load_chat_model(converted.base)
    refused = [shows_marker(r.text) for r in greedy_replies(base, asked, max_new_tokens=40)]
    assert sum(refused) >= 22
    merged = load_chat_model(download(published[0].repo))
    replies = greedy_replies(merged, asked, max_new_tokens=40)
    assert sum(shows_marker(reply.text) for reply in replies) <= 1
    wrapped = PeftModel.from_pretrained(base.model, str(download(published[1].repo)))
    chat = ChatModel(model=wrapped, tokenizer=base.tokenizer)
    assert [r.text for r in greedy_replies(chat, asked, max_new_tokens=40)] == [
        reply.text for reply in replies
    ]
    info = HfApi(endpoint=local_hub.endpoint, token=local_hub.token).model_info(published[0].repo)
    assert info.card_data is not None
    assert info.card_data.library_name == "transformers"
    assert "abl-hub" in info.card_data.tags


def test_a_token_without_write_permission(
    converted: Converted, tmp_path: Path, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(converted.out, tmp_path / "out"))
    token = local_hub.add_token("reader", role="read", token="hf_sentinelofreader")
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    result = CliRunner().invoke(command, ["push", str(out), "--token", token])
    assert result.exit_code == 1
    assert "write" in result.stderr
    assert "sentinel" not in result.output + result.stderr


def test_the_stages_alone_do_what_convert_does(converted: Converted, tmp_path: Path) -> None:
    out = tmp_path / "staged"
    words = ["--positive", str(converted.files[0]), "--negative", str(converted.files[1])]
    for line in (
        ["extract", str(converted.base), "-o", str(out), *words],
        ["apply", str(out)],
        ["evaluate", str(out)],
        ["card", str(out)],
    ):
        result = CliRunner().invoke(command, ["--format", "json", *line])
        assert result.exit_code == 0, (line, result.stderr, result.exception)
        json.loads(result.stdout)
    record = abl_hub.load_record(out)
    assert record.direction == converted.record.direction
    assert record.edit == converted.record.edit
    assert record.merged == converted.record.merged
    assert record.delta == converted.record.delta
    assert record.evaluation.verdict == converted.record.evaluation.verdict


def test_a_broken_run_goes_on(converted: Converted, tmp_path: Path) -> None:
    """What a run left behind after `extract` is taken up, not made again."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / MARKER).touch()
    for name in ("record.json", "direction.safetensors"):
        shutil.copyfile(converted.out / name, partial / name)
    record = json.loads((partial / "record.json").read_text())
    record.update(edit=None, merged=None, delta=None, agreement=None, evaluation=None)
    (partial / "record.json").write_text(json.dumps(record))
    before = (partial / "direction.safetensors").stat().st_ino
    resumed = abl_hub.convert(converted.record.recipe, tmp_path / "out")
    assert (tmp_path / "out" / "direction.safetensors").stat().st_ino == before
    assert not partial.exists()
    assert not (tmp_path / "out" / MARKER).exists()
    assert resumed.edit == converted.record.edit


def test_changed_prompts_are_noticed(converted: Converted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("record.json", "direction.safetensors"):
        shutil.copyfile(converted.out / name, out / name)
    positive = tmp_path / "refused.jsonl"
    lines = converted.files[0].read_text().splitlines(keepends=True)
    positive.write_text("".join(lines[::-1]))
    record = json.loads((out / "record.json").read_text())
    record["recipe"]["positive"] = str(positive)
    (out / "record.json").write_text(json.dumps(record))
    result = CliRunner().invoke(command, ["evaluate", str(out)])
    assert result.exit_code == 1
    assert "holds no merged model" in result.stderr
    result = CliRunner().invoke(command, ["apply", str(out)])
    assert result.exit_code == 1
    assert "prompts have changed" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["direction.safetensors", "record.json"]


def test_public_needs_a_verdict(converted: Converted, tmp_path: Path) -> None:
    out = Path(shutil.copytree(converted.out, tmp_path / "out"))
    record = json.loads((out / "record.json").read_text())
    record["evaluation"]["verdict"]["label"] = "NOT-SUPPRESSED"
    (out / "record.json").write_text(json.dumps(record))
    result = CliRunner().invoke(command, ["push", str(out), "--public", "--token", "hf_x"])
    assert result.exit_code == 1
    assert "NOT-SUPPRESSED" in result.stderr
    assert "--yes" in result.stderr


def test_the_card_s_snippet_runs(converted: Converted, tmp_path: Path) -> None:
    """Copied from the card, with the repository replaced by the folder, and executed."""
    for kind in ("merged", "delta"):
        card = (converted.out / kind / "README.md").read_text()
        snippet = card.split("```python\n")[1].split("```")[0]
        snippet = snippet.replace(f"'path/to/{kind}'", repr(str(converted.out / kind)))
        snippet = snippet.replace(f"'{converted.base.name}'", repr(str(converted.base)))
        printed: list[str] = []
        exec(compile(snippet, kind, "exec"), {"print": printed.append})
        assert printed[0].startswith("To make bread, take")


def test_the_way_back(converted: Converted, tmp_path: Path) -> None:
    out = Path(shutil.copytree(converted.out, tmp_path / "out"))
    result = CliRunner().invoke(command, ["--format", "json", "apply", str(out), "--invert"])
    assert result.exit_code == 0, (result.stderr, result.exception)
    document = json.loads(result.stdout)
    assert document["edited_apart"] > 1.0
    assert document["apart"] < 1e-4


def test_dry_run_reads_no_weight_and_writes_nothing(converted: Converted, tmp_path: Path) -> None:
    words = ["convert", str(converted.base), "-o", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "17 parameters" in result.stdout
    assert not list(tmp_path.iterdir())


def test_interrupted(converted: Converted, tmp_path: Path) -> None:
    """Ctrl-C: one line, no output folder, and the same command goes on."""
    words = ["convert", str(converted.base), "-o", "out", "--max-new-tokens", "16"]
    words += ["--positive", str(converted.files[0]), "--negative", str(converted.files[1])]
    words += ["--random-draws", "1", "--train", "32", "--validation", "8", "--test", "8"]
    line = [sys.executable, "-m", "abl_hub", *words]
    # The tests may run in the background, where Ctrl-C is not heard.
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hearing
    ) as running:
        assert running.stderr is not None
        for printed in running.stderr:
            if printed.startswith("Writing the delta"):
                running.send_signal(signal.SIGINT)
                break
        rest = running.stderr.read()
        assert running.wait(60) == 130, rest
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Going on with" in done.stderr
    assert "Reading activations" not in done.stderr
    assert (tmp_path / "out" / "merged" / "README.md").is_file()


def test_push_from_the_command_line(
    converted: Converted, tmp_path: Path, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(converted.out, tmp_path / "out"))
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    monkeypatch.setenv("ABL_HUB_PUSH_TOKEN", local_hub.token)
    words = ["push", str(out), "--only", "delta", "--delta-repo", "cli-delta"]
    planned = CliRunner().invoke(command, [*words, "--dry-run"])
    assert planned.exit_code == 0, (planned.stderr, planned.exception)
    assert "demo/cli-delta (private, not gated)" in planned.stdout
    api = HfApi(endpoint=local_hub.endpoint, token=local_hub.token)
    assert not api.repo_exists("demo/cli-delta")
    pushed = CliRunner().invoke(command, ["--format", "json", *words])
    assert pushed.exit_code == 0, (pushed.stderr, pushed.exception)
    (published,) = json.loads(pushed.stdout)["published"]
    assert published["repo"] == "demo/cli-delta"
    assert published["private"]
    assert api.model_info("demo/cli-delta").sha == published["commit"]
    assert "adapter_model.safetensors" in api.list_repo_files("demo/cli-delta")
    assert local_hub.token not in pushed.output + pushed.stderr
