"""Activation addition as weights: three forms that agree, and reasons where there is none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from abl_hub.edits.addition import Addition, added, addition
from abl_hub.edits.addition_delta import write_added_delta
from abl_hub.edits.addition_files import plan_added, write_added
from abl_hub.edits.carrying import carrying_layers
from abl_hub.errors import EditError, NoMergedFormError, UnsupportedModelError
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from tests import families
from tests.edits import checkpoints as tiny

# PEFT says that such a bias cannot be merged; our notes say so too.
pytestmark = pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")

LAYER = 1
TOKENS = torch.tensor([[5, 9, 33, 4, 17, 80]])


def edit_of(source: Path) -> Addition:
    model = meta_model(source)
    vector = 3.0 * torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0)).double()
    return addition(model, trace_writers(model), LAYER, vector)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits.float()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("family", [tiny.LLAMA, tiny.TIED, tiny.GPT2], ids=lambda f: f.model_type)
def test_three_forms_add_the_same(family: tiny.Family, shard_size: str, tmp_path: Path) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source", shard_size=shard_size)
    before = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in source.iterdir()}
    edit, model = edit_of(source), tiny.on_meta(source)
    plan = plan_added(edit, source, model=model)
    merged = write_added(edit, source, tmp_path / "merged", model=model, plan=plan)
    write_added_delta(edit, tmp_path / "delta", model=model, base=str(source))

    base = AutoModelForCausalLM.from_pretrained(source)
    unedited = logits(base)
    # The truth, by hand: the block's output, plus the vector.
    layers = base.transformer.h if family.model_type == "gpt2" else base.model.layers

    def hook(_module: object, _inputs: object, output: object) -> object:
        if isinstance(output, tuple):
            return (output[0] + edit.vector.float(), *output[1:])
        return output + edit.vector.float()

    handle = layers[LAYER].register_forward_hook(hook)
    wanted = logits(base)
    handle.remove()
    assert (wanted - unedited).abs().max() > 0.01
    with added(edit, base):
        assert torch.equal(logits(base), wanted)
    written, report = AutoModelForCausalLM.from_pretrained(merged.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.allclose(logits(written), wanted, atol=2e-5)
    wrapped = PeftModel.from_pretrained(base, str(tmp_path / "delta"))
    assert torch.allclose(logits(wrapped), wanted, atol=2e-5)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped), unedited)
    # Nothing else has changed, and the source not at all.
    old, new = tensors(source), tensors(merged.folder)
    assert all(torch.equal(new[key], old[key]) for key in old if key not in merged.edited_keys)
    assert before == {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in source.iterdir()}
    for file in merged.files:
        content = (merged.folder / file.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256


def test_the_way_back(tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.LLAMA), tmp_path / "source")
    edit, model = edit_of(source), tiny.on_meta(source)
    plan = plan_added(edit, source, model=model)
    merged = write_added(edit, source, tmp_path / "merged", model=model, plan=plan)
    edited = tiny.on_meta(merged.folder)
    write_added_delta(edit, tmp_path / "undo", model=edited, base="merged", invert=True)
    wrapped = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(merged.folder), str(tmp_path / "undo")
    )
    base = AutoModelForCausalLM.from_pretrained(source)
    assert torch.allclose(logits(wrapped), logits(base), atol=2e-5)


def test_the_switch_that_grows_a_bias_is_found_and_turned(tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.LLAMA), tmp_path / "source")
    edit, model = edit_of(source), tiny.on_meta(source)
    grown = edit.place.grown
    assert grown is not None
    assert grown.field == "mlp_bias"
    plan = plan_added(edit, source, model=model)
    merged = write_added(edit, source, tmp_path / "merged", model=model, plan=plan)
    assert json.loads((merged.folder / "config.json").read_text())["mlp_bias"] is True
    new = {key: bias for key, bias in tensors(merged.folder).items() if key.endswith(".bias")}
    assert set(new) == set(grown.parameters)
    assert [key for key, bias in new.items() if bias.any()] == list(merged.edited_keys)


@pytest.mark.parametrize(
    ("family", "module", "switch"),
    [
        ("granite", "mlp.down_proj", "mlp_bias"),  # times a residual multiplier
        ("cohere", "self_attn.o_proj", "attention_bias"),  # blocks in parallel: either could
        ("falcon", "self_attention.dense", "bias"),  # its linear layers are written by hand
        ("gpt_neox", "attention.dense", None),
        ("phi3", "mlp.down_proj", None),
        ("aria_text", "mlp.shared_experts.down_proj", "mlp_bias"),  # beside routed experts
        ("granitemoehybrid", "shared_mlp.output_linear", None),
        ("bamba", "feed_forward.down_proj", "mlp_bias"),
    ],
)
def test_the_map_that_is_chosen_adds_what_the_hook_adds(
    family: str, module: str, switch: str | None, tmp_path: Path
) -> None:
    base = families.build(family)
    base.save_pretrained(tmp_path / "source")
    model = meta_model(tmp_path / "source")
    trace = trace_writers(model)
    layer = carrying_layers(model, trace)[-1]
    vector = 2.0 * torch.randn(trace.width, generator=torch.Generator().manual_seed(0)).double()
    edit = addition(model, trace, layer, vector)
    assert edit.place.module.endswith(f"layers.{layer}.{module}") or family == "falcon"
    ids = families.tokens(base)
    with torch.inference_mode(), added(edit, base):
        wanted = base(input_ids=ids, use_cache=False).logits
    if edit.place.has_bias or edit.place.grown:
        assert switch == (edit.place.grown.field if edit.place.grown else None)
        plan = plan_added(edit, tmp_path / "source", model=model)
        write_added(edit, tmp_path / "source", tmp_path / "merged", model=model, plan=plan)
        merged = AutoModelForCausalLM.from_pretrained(
            tmp_path / "merged", attn_implementation="eager"
        )
        with torch.inference_mode():
            found = merged(input_ids=ids, use_cache=False).logits
        assert torch.allclose(found, wanted, atol=2e-5, rtol=1e-4)
    write_added_delta(edit, tmp_path / "delta", model=model, base="source")
    wrapped = PeftModel.from_pretrained(base, str(tmp_path / "delta"))
    with torch.inference_mode():
        found = wrapped(input_ids=ids, use_cache=False).logits
    assert torch.allclose(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gemma2", "a norm, a gate or a router"),
        ("qwen2_moe", "a norm, a gate or a router"),  # its shared expert stands behind a gate
        ("qwen3_moe", "a norm, a gate or a router"),
        ("deepseek_v3", "PEFT gives no bias"),
        ("mamba", "PEFT gives no bias"),
    ],
)
def test_what_cannot_carry_it_is_refused_with_the_reason(family: str, why: str) -> None:
    model = meta_model(families.tiny_config(family))
    trace = trace_writers(model)
    with pytest.raises(UnsupportedModelError, match=why):
        carrying_layers(model, trace)
    with pytest.raises(UnsupportedModelError, match=why):
        addition(model, trace, LAYER, torch.zeros(trace.width))


class InPlace(LlamaDecoderLayer):
    """A block that adds attention's write to what the block before it has put out, in place."""

    def forward(self, hidden_states: torch.Tensor, **given: object) -> torch.Tensor:  # type: ignore[override]
        if self.self_attn.layer_idx == 0:
            hidden_states = hidden_states.clone()
        write, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given)
        hidden_states += write
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def test_a_block_that_writes_into_the_last_one_s_output_changes_no_carrier() -> None:
    model = meta_model(families.tiny_config("llama"))
    for layer in model.get_submodule("model.layers"):
        layer.__class__ = InPlace
    found = [carrier.weight for carrier in trace_writers(model).carriers]
    assert found == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(families.LAYERS)]


def test_a_constant_that_leaves_float16_is_refused(tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.LLAMA), tmp_path / "source", dtype=torch.float16)
    model = tiny.on_meta(source)
    vector = torch.full((tiny.WIDTH,), 1e5, dtype=torch.float64)
    edit = addition(model, trace_writers(model), LAYER, vector)
    plan = plan_added(edit, source, model=model)
    with pytest.raises(EditError, match="leaves the range of float16"):
        write_added(edit, source, tmp_path / "merged", model=model, plan=plan)
    assert not (tmp_path / "merged").exists()


def test_attention_does_not_carry_it_where_the_mlp_would_see_it() -> None:
    model = meta_model(families.tiny_config("llama"))
    found = [carrier.weight for carrier in trace_writers(model).carriers]
    assert found == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(families.LAYERS)]


def test_without_a_bias_there_is_a_delta_alone(tmp_path: Path) -> None:
    family = tiny.Family(
        model_type="qwen2", options={**tiny.LLAMA.options}, writers=tiny.LLAMA.writers
    )
    source = tiny.save(tiny.build(family), tmp_path / "source")
    edit, model = edit_of(source), tiny.on_meta(source)
    with pytest.raises(NoMergedFormError, match="has no bias"):
        plan_added(edit, source, model=model)
    write_added_delta(edit, tmp_path / "delta", model=model, base=str(source))
    base = AutoModelForCausalLM.from_pretrained(source)
    with added(edit, base):
        wanted = logits(base)
    wrapped = PeftModel.from_pretrained(base, str(tmp_path / "delta"))
    assert torch.allclose(logits(wrapped), wanted, atol=2e-5)
