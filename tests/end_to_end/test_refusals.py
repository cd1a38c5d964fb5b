"""Bad input through the command line: one clear line, exit 1, and nothing lost or left behind."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from abl_hub.cli.group import abl_hub
from abl_hub.errors import AblHubError
from abl_hub.hub.local import Fault, LocalHub
from abl_hub.hub.publish import publish
from abl_hub.report.recipe import Recipe
from abl_hub.stages.convert import convert
from tests.chat_models import save_chat_model, save_prompts

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    positive, negative = save_prompts(tmp_path)

    def invoke(source: Path | str, *more: str) -> Result:
        words = ["convert", str(source), "-o", str(tmp_path / "out")]
        words += ["--positive", str(positive), "--negative", str(negative), *more]
        return CliRunner().invoke(abl_hub, words)

    return invoke


def refused(result: Result, tmp_path: Path, *words: str) -> None:
    """Exit 1, nothing on stdout, one error line that says `words`, no output folder."""
    assert result.exit_code == 1, (result.output, result.exception)
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0]
    assert "bug in abl-hub" not in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = CliRunner().invoke(abl_hub, ["convert", str(tmp_path / "nowhere")])
    assert result.stderr.startswith(f"Error: There is no folder {tmp_path / 'nowhere'}.")
    refused(run(tmp_path / "nowhere"), tmp_path, "nowhere")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--judge", "oracle"], "No judge 'oracle'"),
        (["--judge", "classifier:x"], "names no classifier"),
        (["--judge", "classifier:{model}#harmful"], "no class 'harmful'"),
        (["--test-set", "dance"], "No test set 'dance'"),
        (["--test-set", "refusal:nothing.txt"], "There is no file nothing.txt"),
        (["--induce", "--layers", "0-1"], "--induce does not go with --layers"),
        (["--layers", "0-99"], "There is no layer 99"),
        (["--layers", "50-99"], "There is no layer 99"),
        (["--writer", "nothing*"], "No writer fits 'nothing*'"),
        (["--positive", "nothing.txt"], "There is no file nothing.txt"),
    ],
)
def test_what_no_stage_could_do_is_refused_before_the_first(
    run: Run, model: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    words = [word.format(model=model) for word in words]
    result = run(model, *words)
    refused(result, tmp_path, said)
    assert {line for line in result.stderr.splitlines() if line.endswith(" ...")} <= {"Hashing ..."}
    refused(run(model, "--dry-run", *words), tmp_path, said)
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"behaviour": " "}, "has no name"),
        ({"markers": ("Sorry", "")}, "A marker is empty"),
        ({"strength": math.nan}, "nan is no strength"),
        ({"seed": 2**64}, "seed is out of range"),
        ({"methods": ("magic",)}, "No method 'magic'"),
    ],
)
def test_a_recipe_that_no_stage_could_follow(
    changes: dict[str, Any], said: str, model: Path, tmp_path: Path
) -> None:
    recipe = Recipe(source=str(model), positive="a/b", negative="a/c", **changes)
    with pytest.raises(AblHubError, match=said):
        convert(recipe, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("licence", "words", "said"),
    [
        ("mit", ["--token", "hf_mallory"], "does not know who you are"),
        ("mit", ["--merged-repo", "a b"], "is not the name of a repository"),
        ("mit", ["--delta-repo", "x" * 97], "is not the name of a repository"),
        ("cc-by-nd-4.0", [], "forbids derivatives"),
    ],
)
def test_what_cannot_be_published_is_not_begun(
    run: Run,
    broken: Path,
    tmp_path: Path,
    local_hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
    licence: str,
    words: list[str],
    said: str,
) -> None:
    (broken / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    result = run(broken, "--push", "--token", local_hub.token, *words)
    refused(result, tmp_path, said)
    assert " ..." not in result.stderr
    assert list(tmp_path.glob("out*")) == []


def test_publishing_without_a_token_is_not_begun(run: Run, model: Path, tmp_path: Path) -> None:
    result = run(model, "--push")
    refused(result, tmp_path, "there is no token")
    assert " ..." not in result.stderr


def test_prompts_beyond_the_model_s_positions_are_told(run: Run, tmp_path: Path) -> None:
    source = save_chat_model(tmp_path / "short", max_position_embeddings=35)
    few = ["--max-new-tokens", "9", "--random-draws", "1", "--response-prefix", ""]
    result = run(source, *few, "--method", "difference", "--strengths", "one")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "14 of 48 prompts go beyond the model's 35 positions" in result.stderr


def test_no_safetensors(run: Run, broken: Path, tmp_path: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    refused(run(broken), tmp_path, "safetensors")


def test_no_chat_template(run: Run, broken: Path, tmp_path: Path) -> None:
    (broken / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((broken / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    refused(run(broken), tmp_path, "chat template", "chat version")


def test_a_chat_template_that_does_not_render(run: Run, broken: Path, tmp_path: Path) -> None:
    template = broken / "chat_template.jinja"
    text = template.read_text()
    template.write_text("{% for message in messages %}{{ message.content ")
    refused(run(broken), tmp_path, "chat template cannot write a prompt", "Repair the template")
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        + text
    )
    refused(run(broken, "--system", "Be kind."), tmp_path, "No system role", "Drop --system")


def test_files_that_are_not_there_or_broken(run: Run, broken: Path, tmp_path: Path) -> None:
    for file in broken.glob("tokenizer*"):
        file.unlink()
    refused(run(broken), tmp_path, "tokenizer", "its files are not there")
    (broken / "config.json").write_text('{"model_type": ')
    refused(run(broken), tmp_path, "config.json is not JSON", "Download the model again")
    (broken / "config.json").unlink()
    (broken / "model.Q4_K_M.gguf").write_bytes(b"GGUF")
    refused(run(broken), tmp_path, "GGUF files, which are not edited", "made from")


def test_not_a_causal_language_model(run: Run, broken: Path, tmp_path: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config.update(model_type="vit", architectures=["ViTModel"])
    (broken / "config.json").write_text(json.dumps(config))
    refused(run(broken), tmp_path, "causal")


def test_an_architecture_that_cannot_be_traced(run: Run, tmp_path: Path) -> None:
    """Post-LN: the stream itself is normalised after each write."""
    source = save_chat_model(
        tmp_path / "post", "openai-gpt", n_embd=32, n_layer=2, n_head=4, n_positions=128
    )
    refused(run(source), tmp_path)


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors"])
@pytest.mark.parametrize("card", ["", "---\nbase_model: [org/full-precision]\n---\n# A model\n"])
def test_quantised_weights_are_refused_before_they_are_loaded(
    run: Run, broken: Path, tmp_path: Path, method: str, card: str, dry_run: list[str]
) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "README.md").write_text(card)
    named = "full-precision base: org/full-precision" if card else "full-precision base model"
    refused(run(broken, *dry_run), tmp_path, f"quantised with {method}", named)


def test_a_truncated_shard(run: Run, broken: Path, tmp_path: Path) -> None:
    shard = broken / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-64])
    refused(run(broken), tmp_path)


def test_nan_weights(run: Run, broken: Path, tmp_path: Path) -> None:
    shard = broken / "model.safetensors"
    tensors = load_file(shard)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    refused(run(broken), tmp_path, "down_proj", "NaN")


@pytest.mark.parametrize(
    ("positive", "negative", "word"),
    [
        ("", None, "no prompts"),
        (None, "How do I cast spell 3?\n" + "".join(f"Bake {i}\n" for i in range(20)), "share"),
        ("".join(f"Cast {i}\n" for i in range(5)), None, "needed"),
    ],
)
def test_unfair_prompt_sets(
    run: Run, model: Path, tmp_path: Path, positive: str | None, negative: str | None, word: str
) -> None:
    if positive is not None:
        (tmp_path / "positive.txt").write_text(positive)
    if negative is not None:
        (tmp_path / "negative.txt").write_text(negative)
    refused(run(model), tmp_path, word)


def test_an_output_folder_that_is_not_empty(run: Run, model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("precious")
    result = run(model)
    assert result.exit_code == 1
    assert "not empty" in result.stderr
    again = run(model, "--overwrite")
    assert again.exit_code == 1
    assert "not made by abl-hub" in again.stderr
    assert kept.read_text() == "precious"


def test_no_output_lies_in_the_source(run: Run, model: Path) -> None:
    before = sorted(model.iterdir())
    result = run(model, "-o", str(model / "inside"))
    assert result.exit_code == 1
    assert "a source is never written to. Give another -o" in result.stderr
    assert sorted(model.iterdir()) == before


def test_no_baseline_refusal_is_a_verdict(run: Run, model: Path, tmp_path: Path) -> None:
    """A random model refuses nothing: that is a result, not a crash."""
    result = run(model, "--max-new-tokens", "8", "--random-draws", "1")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "NO-BASELINE-REFUSAL" in result.stdout
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["evaluation"]["verdict"]["label"] == "NO-BASELINE-REFUSAL"
    assert record["agreement"]["merged_delta"] <= 1e-4
    assert not (tmp_path / "out.partial").exists()


def test_what_is_not_on_the_hub_for_you(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalHub(tmp_path / "hub", user="alice") as hub:
        publish(
            model,
            repo_id="alice/tiny",
            kind="model",
            private=True,
            token=hub.token,
            endpoint=hub.endpoint,
            commit_message="tiny",
        )
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        cache = ["--cache-dir", str(tmp_path / "cache"), "--token"]
        refused(run("alice/nothing", *cache, hub.token), tmp_path, "alice/nothing")
        refused(run("alice/tiny", *cache, "hf_mallory"), tmp_path, "alice/tiny")
        wrong = run("alice/tiny", "--revision", "v9", *cache, hub.token)
        refused(wrong, tmp_path, "v9")
        for result in (wrong, run("alice/tiny", *cache, "hf_mallory")):
            assert "hf_" not in result.stderr


def test_a_gated_repository(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalHub(tmp_path / "hub", user="alice") as hub:
        publish(
            model,
            repo_id="alice/tiny",
            kind="model",
            private=False,
            gated="manual",
            token=hub.token,
            endpoint=hub.endpoint,
            commit_message="tiny",
        )
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        bob = hub.add_token("bob")
        result = run("alice/tiny", "--cache-dir", str(tmp_path / "cache"), "--token", bob)
        refused(result, tmp_path, "gated", "alice/tiny")


def test_the_network_is_lost_half_way(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights break off for good; nothing is left, and the same command succeeds later."""
    with LocalHub(tmp_path / "hub", user="alice") as hub:
        publish(
            model,
            repo_id="alice/tiny",
            kind="model",
            private=True,
            token=hub.token,
            endpoint=hub.endpoint,
            commit_message="tiny",
        )
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        words = ["alice/tiny", "--cache-dir", str(tmp_path / "cache"), "--token", hub.token]
        words += ["--max-new-tokens", "8", "--random-draws", "1"]
        with hub.faults.set(Fault(kind="truncate", path="_lfs|safetensors", times=None)):
            refused(run(*words), tmp_path)
        again = run(*words)
        assert again.exit_code == 0, (again.stderr, again.exception)
        assert (tmp_path / "out" / "record.json").is_file()


def quantise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def take_template(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def make_encoder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "modernbert"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(quantise, "gptq"), (take_template, "chat template"), (make_encoder, "not one of its kind")],
)
def test_no_weight_is_downloaded_for_a_model_that_is_refused(
    run: Run,
    broken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    word: str,
) -> None:
    spoil(broken)
    cache = tmp_path / "cache"
    with LocalHub(tmp_path / "hub", user="alice") as hub:
        publish(
            broken,
            repo_id="alice/tiny",
            kind="model",
            token=hub.token,
            endpoint=hub.endpoint,
            commit_message="tiny",
        )
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        result = run("alice/tiny", "--cache-dir", str(cache), "--token", hub.token)
    refused(result, tmp_path, word)
    assert list(cache.rglob("config.json"))
    assert not list(cache.rglob("*.safetensors"))


def test_a_full_disk(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be had here without harm: the answer about free space is made up."""
    little = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("abl_hub.edits.staging.shutil.disk_usage", lambda _folder: little)
    refused(run(model, "--max-new-tokens", "8"), tmp_path, "disk")


def test_another_behaviour_judged_by_refusal_phrases_is_told(run: Run, model: Path) -> None:
    told = "formality will be judged by refusal phrases: say with --marker"
    assert told in run(model, "--dry-run", "--behaviour", "formality").stderr
    marked = run(model, "--dry-run", "--behaviour", "formality", "--marker", "Dear")
    assert told not in marked.stderr
    assert told not in run(model, "--dry-run").stderr
