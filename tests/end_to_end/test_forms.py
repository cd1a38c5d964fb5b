"""Which forms are written, of which writers, and when a form is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.errors import EditError
from abl_hub.report.record import AgreementRecord, load_record
from abl_hub.stages.agreement import refuse_disagreement
from tests.chat_models import save_chat_model, save_prompts, tokenizer
from tests.families import tiny_config

SMALL = ["--train", "16", "--validation", "4", "--test", "4", "--strengths", "one"]
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "n_group": 8,
    "topk_group": 4,
    "torch_dtype": "bfloat16",
}


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.mark.parametrize("way", [[], ["--induce"]])
def test_weights_in_16_bits_may_be_measured_in_32(
    way: list[str], demo: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(demo, dtype=torch.bfloat16).save_pretrained(base)
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, base)
    positive, negative = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    asked = ["--positive", positive, "--negative", negative, *SMALL, "--dtype", "float32", *way]
    for words in (["extract", base, "-o", out, "--method", "projected", *asked], ["apply", out]):
        result = run(*words)
        assert result.exit_code == 0, result.output
    agreement = load_record(out).agreement
    # What is left is what storing the weights in 16 bits leaves, whatever it is measured in.
    assert way or 1e-5 < agreement.residual < 2e-3
    assert 1e-3 < agreement.hooks_merged < 0.1 * agreement.base_hooks


def test_only_the_writers_that_are_asked_for(demo: Path, tmp_path: Path) -> None:
    positive, negative = write_prompts(prompts(), tmp_path)
    asked = ["--positive", positive, "--negative", negative, *SMALL]
    out = tmp_path / "out"
    result = run("extract", demo, "-o", out, *asked, "--writer", "*.o_proj.weight")
    assert result.exit_code == 0, result.output
    assert run("apply", out).exit_code == 0
    record = load_record(out)
    edited = {w.parameter for w in record.edit.writers if w.strength != 0}
    assert len(edited) == record.direction.layer_count
    assert all(name.endswith("o_proj.weight") for name in edited)
    assert record.edit.exactness == "partial"
    result = run("extract", demo, "-o", tmp_path / "no", *asked, "--writer", "*.o_prj.weight")
    assert result.exit_code == 1
    assert "No writer fits '*.o_prj.weight'" in result.output
    assert "o_proj.weight" in result.output


def test_each_kind_of_writer_as_strongly_as_it_is_asked_for(demo: Path, tmp_path: Path) -> None:
    positive, negative = write_prompts(prompts(), tmp_path)
    asked = ["--positive", positive, "--negative", negative, *SMALL, "--strength", 2]
    patterns = ["--writer", "*_proj.weight=0.25", "--writer", "*.layers.3.*.down_proj.weight"]
    out = tmp_path / "out"
    result = run("extract", demo, "-o", out, *asked, *patterns)
    assert result.exit_code == 0, result.output
    assert run("apply", out).exit_code == 0
    record = load_record(out)
    found = {writer.parameter: writer.strength for writer in record.edit.writers}
    assert found.pop("model.embed_tokens.weight") == 0.0
    assert found.pop("model.layers.3.mlp.down_proj.weight") == 2.0
    assert set(found.values()) == {0.5}
    assert record.agreement.hooks_merged < 1e-4
    assert record.agreement.hooks_delta < 1e-4
    result = run("extract", demo, "-o", tmp_path / "no", *asked, "--writer", "*.o_proj.weight=half")
    assert result.exit_code == 1
    assert "'half' is no strength" in result.output


def test_a_head_that_stays_tied_is_changed_and_said_to_be(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "tied", "qwen2", tie_word_embeddings=True)
    positive, negative = save_prompts(tmp_path)
    asked = ["--positive", positive, "--negative", negative, *SMALL]
    half = ["--no-untie", "--strength", 0.5]
    for name, more in (("untied", []), ("tied-out", ["--no-untie"]), ("half", half)):
        out = tmp_path / name
        result = run("extract", model, "-o", out, *asked, *more)
        assert result.exit_code == 0, result.output
        result = run("apply", out)
        assert result.exit_code == 0, result.output
    untied, tied = load_record(tmp_path / "untied"), load_record(tmp_path / "tied-out")
    assert untied.edit.exactness == "exact"
    assert tied.edit.exactness == "head changed"
    assert load_record(tmp_path / "half").edit.exactness == "partial"
    for record in (tied, load_record(tmp_path / "half")):
        assert any("head is still tied" in note for note in record.merged.notes)
    assert untied.agreement.hooks_merged < 1e-4
    kept = json.loads((tmp_path / "tied-out" / "merged" / "config.json").read_text())
    assert kept["tie_word_embeddings"] is True
    # A delta cannot tell the head from the embedding that it is tied to.
    assert run("apply", tmp_path / "untied", "--invert").exit_code == 0
    result = run("apply", tmp_path / "tied-out", "--invert")
    assert result.exit_code == 1
    assert "No delta takes these weights back" in result.output


def test_where_no_checkpoint_can_hold_the_edit_the_delta_does(tmp_path: Path) -> None:
    words = tokenizer()
    config = tiny_config("xlm-roberta-xl")
    config.vocab_size, config.max_position_embeddings = len(words), 1024
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "source")
    words.save_pretrained(tmp_path / "source")
    positive, negative = save_prompts(tmp_path)
    out = tmp_path / "out"
    result = run(
        "convert",
        tmp_path / "source",
        "-o",
        out,
        *["--positive", positive, "--negative", negative, *SMALL],
        *["--max-new-tokens", 8, "--random-draws", 1],
    )
    assert result.exit_code == 0, result.output
    record = load_record(out)
    assert record.merged is None
    assert "cannot be untied" in record.refused["merged"]
    assert "No merged form" in result.output
    assert record.evaluated_form == "hooks"
    assert record.agreement.hooks_delta <= 1e-4
    assert (out / "delta" / "README.md").is_file()
    assert not (out / "merged").exists()


def test_where_no_adapter_can_hold_the_edit_the_checkpoint_does(tmp_path: Path) -> None:
    words = tokenizer()
    config = tiny_config("mamba")
    config.vocab_size = len(words)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "source")
    words.save_pretrained(tmp_path / "source")
    positive, negative = save_prompts(tmp_path)
    out = tmp_path / "out"
    result = run(
        "convert",
        tmp_path / "source",
        "-o",
        out,
        *["--positive", positive, "--negative", negative, *SMALL, "--layers", "1-2"],
        *["--max-new-tokens", 8, "--random-draws", 1],
    )
    assert result.exit_code == 0, result.output
    record = load_record(out)
    assert record.delta is None
    assert "No adapter can hold this edit" in record.refused["delta"]
    assert "No delta form" in result.output
    assert record.agreement.hooks_merged <= 1e-4
    card = (out / "merged" / "README.md").read_text()
    assert "hooks–delta" not in card
    assert "--invert" not in card
    assert not (out / "delta").exists()
    result = run("space", out)
    assert result.exit_code == 1
    assert "has no delta to switch on and off" in result.output


def test_what_a_portable_delta_would_cost_is_measured_on_the_base(tmp_path: Path) -> None:
    """The complete one stores biases whole, and PEFT leaves them in the model that it unloads."""
    words = tokenizer()
    config = tiny_config("starcoder2")
    config.vocab_size, config.max_position_embeddings = len(words), 512
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4) if weight.dim() > 1 else weight.add_(0.3 * torch.randn(weight.shape))
    model.save_pretrained(tmp_path / "source")
    words.save_pretrained(tmp_path / "source")
    positive, negative = save_prompts(tmp_path)
    asked = ["--positive", positive, "--negative", negative, *SMALL]
    costs = []
    for profile in ("auto", "portable"):
        out = tmp_path / profile
        assert run("extract", tmp_path / "source", "-o", out, *asked).exit_code == 0
        (out / ".making").mkdir()  # what a killed run has left
        record = json.loads((out / "record.json").read_text())
        record["recipe"]["delta_profile"] = profile
        (out / "record.json").write_text(json.dumps(record))
        result = run("apply", out)
        assert result.exit_code == 0, result.output
        assert not (out / ".making").exists()
        agreement = load_record(out).agreement
        costs.append(agreement.portable_kl if profile == "auto" else agreement.delta_kl)
    assert costs[0] == pytest.approx(costs[1], rel=0.01)
    assert costs[0] > 1e-6


def test_the_plan_is_of_what_the_recipe_names(tmp_path: Path) -> None:
    for name in ("llama", "zamba2"):
        tiny_config(name).save_pretrained(tmp_path / name)

    def planned(name: str, *more: object) -> dict[str, str]:
        result = run("--format", "json", "convert", tmp_path / name, "--dry-run", *more)
        assert result.exit_code == 0, result.output
        plan: dict[str, str] = json.loads(result.stdout)
        return plan

    whole, part = planned("llama"), planned("llama", "--layers", "1-2")
    assert whole["writers"] == "9 parameters"
    assert part["writers"] == "4 of 9 parameters"
    assert part["bytes to read"] != whole["bytes to read"]
    assert "none: " in planned("zamba2")["merged"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_form_that_differs_by_more_than_rounding_is_refused(whole: bool) -> None:
    agreement = AgreementRecord(
        prompts=8,
        hooks_merged=1e-6,
        hooks_delta=0.5,
        merged_delta=0.5,
        base_hooks=5.0,
        residual=0.0,
    )
    checks = {"merged_is_whole": True, "narrow": False}
    if not whole:
        refuse_disagreement(agreement, delta_is_whole=False, **checks)
        refuse_disagreement(replace(agreement, hooks_delta=1e-5), delta_is_whole=True, **checks)
        return
    with pytest.raises(EditError, match="The delta is not the edit"):
        refuse_disagreement(agreement, delta_is_whole=True, **checks)
    with pytest.raises(EditError, match="merged model"):
        refuse_disagreement(
            replace(agreement, hooks_merged=float("nan")), delta_is_whole=False, **checks
        )


def test_a_configuration_is_enough_to_plan_671_billion_parameters(tmp_path: Path) -> None:
    folder = tmp_path / "deepseek"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    result = run("--format", "json", "convert", folder, "--dry-run", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert "671.0 B" in plan["source"]
    assert "61 layers, width 7168" in plan["architecture"]
    assert "GB" in plan["bytes to read"]
    assert not (tmp_path / "out").exists()
    assert torch.get_default_dtype() == torch.float32


def test_the_way_back_says_what_it_leaves_edited(tmp_path: Path) -> None:
    """PEFT holds falcon_h1's attention and MLPs, and not its Mamba mixers."""
    mixers = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8}
    model = save_chat_model(
        tmp_path / "hybrid",
        "falcon_h1",
        **mixers,
        mamba_n_groups=1,
        mamba_chunk_size=4,
        num_hidden_layers=2,
    )
    positive, negative = save_prompts(tmp_path)
    out = tmp_path / "out"
    asked = ["--positive", positive, "--negative", negative, *SMALL]
    assert run("extract", model, "-o", out, *asked).exit_code == 0
    assert run("apply", out).exit_code == 0
    result = run("--format", "json", "apply", out, "--invert")
    assert result.exit_code == 0, result.output
    undone = json.loads(result.stdout)
    assert [name.rpartition("mamba.")[2] for name in undone["left_out"]] == ["out_proj.weight"] * 2
    assert 1e-5 < undone["apart"] < undone["edited_apart"]
    assert "2 of the edited writers stay edited" in result.stderr
    result = run("--format", "json", "apply", out, "--invert", "--memory", "0.000001")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["apart"] is None
    assert "is not measured" in result.stderr
