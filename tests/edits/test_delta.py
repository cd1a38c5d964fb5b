"""A delta loaded by PEFT is the float64 edit, on every mechanism by which weights are held.

The writers are named by hand here, so that the truth does not come from the tracer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from abl_hub.edits.delta import CONFIG, WEIGHTS, Delta, check_delta, write_delta
from abl_hub.edits.edit import Edit, Gains, factors, remove
from abl_hub.edits.hooks import applied
from abl_hub.errors import EditError, OutputError
from abl_hub.model.gains import gains
from abl_hub.model.trace import trace_writers
from abl_hub.model.writers import Gain, Writer
from tests import families

WIDTH = 32
TOLERANCE = 1e-5
PROMPT = torch.tensor([[3, 14, 15, 92, 65, 35], [8, 97, 93, 23, 84, 62]])

_SMALL = {
    "vocab_size": 120,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LLAMA = {"embed_tokens.weight": 1, "o_proj.weight": 0, "down_proj.weight": 0}
_MOE = {"embed_tokens.weight": 1, "o_proj.weight": 0, "experts.down_proj": 1}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family, its writers by suffix with their stream axes, and what norms follow them."""

    model_type: str
    writers: dict[str, int]
    config: dict[str, Any] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    warns: bool = False
    """PEFT warns that the embedding is tied, and cannot be asked in a way in which it does not."""


CASES = {
    "linear": Case(model_type="llama", writers=_LLAMA, config={"tie_word_embeddings": False}),
    "tied": Case(model_type="qwen2", writers=_LLAMA, config={"tie_word_embeddings": True}),
    "biases": Case(
        model_type="llama",
        writers={"o_proj.weight": 0, "o_proj.bias": 0, "down_proj.weight": 0, "down_proj.bias": 0},
        config={"attention_bias": True, "mlp_bias": True},
    ),
    "biases of some layers": Case(
        model_type="llama",
        writers={"o_proj.weight": 0, "o_proj.bias": 0, "down_proj.weight": 0},
        config={"attention_bias": True},
    ),
    "biases and embedding": Case(
        model_type="phi",
        writers={
            "embed_tokens.weight": 1,
            "dense.weight": 0,
            "dense.bias": 0,
            "fc2.weight": 0,
            "fc2.bias": 0,
        },
    ),
    "conv1d and learned positions": Case(
        model_type="gpt2",
        writers={"wte.weight": 1, "wpe.weight": 1, "c_proj.weight": 1, "c_proj.bias": 0},
    ),
    "biases of conv1d": Case(model_type="gpt2", writers={"c_proj.weight": 1, "c_proj.bias": 0}),
    "positions computed in the module": Case(
        model_type="opt",
        writers={
            "embed_tokens.weight": 1,
            "embed_positions.weight": 1,
            "out_proj.weight": 0,
            "out_proj.bias": 0,
            "fc2.weight": 0,
            "fc2.bias": 0,
        },
        config={"ffn_dim": 48, "word_embed_proj_dim": WIDTH},
    ),
    "norm after the embedding": Case(
        model_type="bloom",
        writers={
            "word_embeddings_layernorm.bias": 0,
            "self_attention.dense.weight": 0,
            "self_attention.dense.bias": 0,
            "dense_4h_to_h.weight": 0,
            "dense_4h_to_h.bias": 0,
        },
    ),
    "scaled embedding, post-norm": Case(
        model_type="gemma2",
        writers=_LLAMA,
        norms={
            "o_proj.weight": "post_attention_layernorm.weight",
            "down_proj.weight": "post_feedforward_layernorm.weight",
        },
    ),
    "fused experts": Case(
        model_type="mixtral",
        writers=_MOE,
        config={"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "fused experts beside a dense layer": Case(
        model_type="qwen3_moe",
        writers=_LLAMA | {"experts.down_proj": 1},
        config=_EXPERTS | {"num_experts": 4, "mlp_only_layers": [0]},
    ),
    "fused experts, tied": Case(
        model_type="qwen3_moe",
        writers=_MOE,
        config=_EXPERTS | {"num_experts": 4, "tie_word_embeddings": True},
        warns=True,
    ),
    "shared expert": Case(
        model_type="qwen2_moe",
        writers=_LLAMA | {"experts.down_proj": 1},
        config=_EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 40},
    ),
    "transposed experts with biases": Case(
        model_type="gpt_oss",
        writers={
            "embed_tokens.weight": 1,
            "o_proj.weight": 0,
            "o_proj.bias": 0,
            "experts.down_proj": 2,
            "experts.down_proj_bias": 1,
        },
        config={"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "transposed experts, stream last": Case(
        model_type="llama4_text",
        writers=_LLAMA | {"experts.down_proj": 2},
        config={
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
        },
    ),
}


def build(case: Case) -> PreTrainedModel:
    """A random model with weights large enough for every writer to matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.model_type, **_SMALL | case.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.15 * torch.randn_like(parameter))
    return model


def writers_of(case: Case, model: PreTrainedModel) -> tuple[Writer, ...]:
    head = model.get_output_embeddings().weight
    found = []
    for name, parameter in model.named_parameters():
        suffix = next((s for s in case.writers if name.endswith(f".{s}")), None)
        if suffix is not None:
            layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
            norm = case.norms.get(suffix)
            stem = name.split(f".{layer}.")[0] + f".{layer}."
            found.append(
                Writer(
                    parameter=name,
                    axis=case.writers[suffix],
                    shape=tuple(parameter.shape),
                    between=(Gain(parameter=stem + norm),) if norm else (),
                    layer=layer,
                    tied_to_head=parameter is head,
                )
            )
    matched = {s for s in case.writers for w in found if w.parameter.endswith(f".{s}")}
    assert matched == set(case.writers)
    return tuple(found)


def gains_of(model: PreTrainedModel, writers: tuple[Writer, ...]) -> Gains:
    """Gemma's convention: the gain is 1 + weight."""
    return {
        step.parameter: 1 + model.get_parameter(step.parameter).detach().double()
        for writer in writers
        for step in writer.between
        if isinstance(step, Gain)
    }


def reading(model: PreTrainedModel) -> Callable[[str], torch.Tensor]:
    return lambda name: model.get_parameter(name).detach()


def edited(model: PreTrainedModel, edit: Edit, gains: Gains) -> PreTrainedModel:
    """The truth: weights edited in memory in float64, the head untied first."""
    truth = copy.deepcopy(model)
    head = truth.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    for writer, strength in zip(edit.writers, edit.strengths, strict=True):
        change = factors(edit, writer, strength, gains)
        parameter = truth.get_parameter(writer.parameter)
        weight = parameter.data.double().movedim(writer.axis, -1)
        weight = weight - (weight @ change.read.T) @ change.remove
        parameter.data = weight.movedim(-1, writer.axis).float().contiguous()
    return truth


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(
            input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), use_cache=False
        ).logits
    return found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def directions(rank: int) -> torch.Tensor:
    return torch.randn(rank, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def write(edit: Edit, out: Path, model: PreTrainedModel, **options: Any) -> Delta:
    return write_delta(
        edit,
        out,
        model=model,
        read=reading(model),
        gains=gains_of(model, edit.writers),
        base="someone/base",
        **options,
    )


def load(model: PreTrainedModel, delta: Delta, case: Case | None = None) -> PeftModel:
    """As a user loads it; any warning is an error."""
    if case is not None and case.warns:
        with pytest.warns(UserWarning, match="tie_word_embeddings"):
            return PeftModel.from_pretrained(model, str(delta.folder))
    return PeftModel.from_pretrained(model, str(delta.folder))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_loaded_by_peft_it_is_the_edit(name: str, rank: int, tmp_path: Path) -> None:
    model = build(CASES[name])
    edit = remove(directions(rank), writers_of(CASES[name], model), 1.0)
    truth = logits(edited(model, edit, gains_of(model, edit.writers)))
    base = logits(model)

    delta = write(edit, tmp_path / "delta", model)
    found = logits(load(model, delta, CASES[name]))

    assert apart(base, truth) > 0.05
    assert apart(found, truth) <= TOLERANCE
    assert delta.faithful
    assert delta.covered == tuple(writer.parameter for writer in edit.writers)


@pytest.mark.parametrize("name", CASES)
def test_inverted_on_the_edited_weights_it_is_the_base(name: str, tmp_path: Path) -> None:
    model = build(CASES[name])
    edit = remove(directions(1), writers_of(CASES[name], model), 1.0)
    merged = edited(model, edit, gains_of(model, edit.writers))
    there = logits(merged)

    delta = write(edit, tmp_path / "back", model, invert=True)
    back = logits(load(merged, delta, CASES[name]))

    assert apart(there, logits(model)) > 0.05
    assert apart(back, logits(model)) <= TOLERANCE


def test_strengths_differ_by_writer(tmp_path: Path) -> None:
    model = build(CASES["linear"])
    writers = writers_of(CASES["linear"], model)
    strengths = tuple(0.25 * index for index in range(len(writers)))
    edit = Edit(
        directions=remove(directions(2), writers).directions, writers=writers, strengths=strengths
    )

    delta = write(edit, tmp_path / "delta", model)
    truth = logits(edited(model, edit, {}))
    whole = logits(edited(model, remove(directions(2), writers), {}))
    found = logits(load(model, delta))

    assert apart(found, truth) <= TOLERANCE
    assert apart(found, whole) > 0.05


def test_strength_zero_changes_nothing(tmp_path: Path) -> None:
    model = build(CASES["linear"])
    base = logits(model)
    edit = remove(directions(1), writers_of(CASES["linear"], model), 0.0)

    delta = write(edit, tmp_path / "delta", model)

    assert torch.equal(logits(load(model, delta)), base)
    assert delta.covered == ()
    assert delta.faithful


def test_disabled_it_is_the_base(tmp_path: Path) -> None:
    model = build(CASES["tied"])
    base = logits(model)
    edit = remove(directions(1), writers_of(CASES["tied"], model))
    wrapped = load(model, write(edit, tmp_path / "delta", model))

    assert apart(logits(wrapped), base) > 0.05
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped), base)


def test_merging_is_the_edit_where_nothing_is_tied(tmp_path: Path) -> None:
    model = build(CASES["linear"])
    edit = remove(directions(1), writers_of(CASES["linear"], model))
    truth = logits(edited(model, edit, {}))
    delta = write(edit, tmp_path / "delta", model)

    merged = load(model, delta).merge_and_unload()

    assert apart(logits(merged), truth) <= TOLERANCE


def test_a_tied_head_is_left_alone_and_the_note_says_what_merging_would_do(tmp_path: Path) -> None:
    model = build(CASES["tied"])
    edit = remove(directions(1), writers_of(CASES["tied"], model))
    truth = logits(edited(model, edit, {}))
    delta = write(edit, tmp_path / "delta", model)
    wrapped = load(model, delta)

    assert apart(logits(wrapped), truth) <= TOLERANCE
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        merged = wrapped.merge_and_unload()
    assert apart(logits(merged), truth) > 0.01
    assert any("merge_and_unload" in note for note in delta.notes)


# Profiles


def layers_only(case: Case, model: PreTrainedModel) -> Edit:
    """An edit of the linear layers of layer 1, the embedding at strength 0."""
    writers = writers_of(case, model)
    return Edit(
        directions=remove(directions(1), writers).directions,
        writers=writers,
        strengths=tuple(0.7 if writer.layer == 1 else 0.0 for writer in writers),
    )


def test_auto_is_portable_where_that_is_faithful(tmp_path: Path) -> None:
    model = build(CASES["tied"])
    edit = layers_only(CASES["tied"], model)

    delta = write(edit, tmp_path / "delta", model)
    config = json.loads((delta.folder / CONFIG).read_text())
    tensors = load_file(delta.folder / WEIGHTS)

    assert delta.profile == "portable"
    assert delta.faithful
    assert config["target_modules"] == ["down_proj", "o_proj"]
    assert config["r"] == config["lora_alpha"] == 1
    assert config["bias"] == "none"
    assert not {"rank_pattern", "alpha_pattern", "lora_bias", "modules_to_save"} & set(config)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert len(tensors) == 2 * 2 * 2
    for key, tensor in tensors.items():
        assert bool(tensor.any()) == (".layers.1." in key), key


def test_transformers_loads_the_portable_profile_by_itself(tmp_path: Path) -> None:
    model = build(CASES["tied"])
    edit = layers_only(CASES["tied"], model)
    base, truth = logits(model), logits(edited(model, edit, {}))
    delta = write(edit, tmp_path / "delta", model, profile="portable")

    model.load_adapter(str(delta.folder))

    assert apart(base, truth) > 0.05
    assert apart(logits(model), truth) <= TOLERANCE


def test_portable_says_what_it_leaves_out(tmp_path: Path) -> None:
    model = build(CASES["biases and embedding"])
    edit = remove(directions(1), writers_of(CASES["biases and embedding"], model))
    kept = Edit(
        directions=edit.directions,
        writers=edit.writers,
        strengths=tuple(1.0 if w.axis == 0 and len(w.shape) == 2 else 0.0 for w in edit.writers),
    )
    truth = logits(edited(model, kept, {}))

    delta = write(edit, tmp_path / "delta", model, profile="portable")
    found = logits(load(model, delta))

    assert apart(found, truth) <= TOLERANCE
    assert not delta.faithful
    assert {left.parameter for left in delta.left_out} == {
        w.parameter for w, s in zip(kept.writers, kept.strengths, strict=True) if s == 0.0
    }
    assert any("embeddings" in note for note in delta.notes)


def test_what_peft_refuses_is_left_out_with_its_reason(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mamba2",
        vocab_size=120,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=1,
        chunk_size=4,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    case = Case(model_type="mamba2", writers={"embeddings.weight": 1, "out_proj.weight": 0})
    edit = remove(directions(1), writers_of(case, model))

    delta = write(edit, tmp_path / "delta", model)

    assert delta.covered == ("backbone.embeddings.weight",)
    assert all("incompatible with Mamba" in left.reason for left in delta.left_out)
    assert len(delta.left_out) == 2


def test_what_peft_would_hide_from_the_model_is_left_out(tmp_path: Path) -> None:
    model = families.build("dbrx")  # its router's parent reads the experts' weights by itself
    trace = trace_writers(model)
    edit = remove(torch.randn(trace.width).double(), trace.writers)

    delta = write(edit, tmp_path / "delta", model)

    assert {left.parameter for left in delta.left_out} == {
        f"transformer.blocks.{i}.ffn.experts.mlp.w2" for i in range(families.LAYERS)
    }
    assert all("hides it" in left.reason for left in delta.left_out)
    PeftModel.from_pretrained(model, str(tmp_path / "delta"))(input_ids=families.tokens(model))


def test_an_edit_that_peft_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = build(CASES["norm after the embedding"])
    writers = writers_of(CASES["norm after the embedding"], model)
    biases = tuple(w for w in writers if "layernorm" in w.parameter)

    with pytest.raises(EditError, match="biases are read by PEFT alone"):
        write(remove(directions(1), biases), tmp_path / "d", model, profile="portable")
    assert not (tmp_path / "d").exists()


# On disk


def test_the_configuration_holds_nothing_of_ours(tmp_path: Path) -> None:
    model = build(CASES["linear"])
    edit = remove(directions(1), writers_of(CASES["linear"], model))

    delta = write(edit, tmp_path / "delta", model, revision="a" * 40)

    assert json.loads((delta.folder / CONFIG).read_text()) == {
        "base_model_name_or_path": "someone/base",
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 1,
        "revision": "a" * 40,
        "target_modules": ["down_proj", "embed_tokens", "o_proj"],
        "task_type": "CAUSAL_LM",
    }


def test_a_tensor_that_peft_would_drop_is_an_error(tmp_path: Path) -> None:
    model = build(CASES["fused experts beside a dense layer"])
    edit = remove(directions(1), writers_of(CASES["fused experts beside a dense layer"], model))
    delta = write(edit, tmp_path / "delta", model)
    check_delta(delta.folder, model)

    # What a hand-written adapter would say: PEFT takes the dense layer for experts.
    config = json.loads((delta.folder / CONFIG).read_text())
    config["target_parameters"] = [
        name for name in config["target_parameters"] if "experts" in name
    ]
    config["target_modules"] = [*config["target_modules"], "mlp.down_proj"]
    (delta.folder / CONFIG).write_text(json.dumps(config))

    with pytest.raises(EditError, match="would drop 2 of the adapter's tensors"):
        check_delta(delta.folder, model)


def test_a_missing_or_misshapen_tensor_is_an_error(tmp_path: Path) -> None:
    model = build(CASES["linear"])
    edit = remove(directions(1), writers_of(CASES["linear"], model))
    delta = write(edit, tmp_path / "delta", model)
    tensors = load_file(delta.folder / WEIGHTS)
    key = sorted(tensors)[0]

    without = {name: tensor for name, tensor in tensors.items() if name != key}
    save_file(without, delta.folder / WEIGHTS)
    with pytest.raises(EditError, match="finds nothing for 1"):
        check_delta(delta.folder, model)

    save_file(without | {key: torch.zeros(3, 5)}, delta.folder / WEIGHTS)
    with pytest.raises(EditError, match="cannot load"):
        check_delta(delta.folder, model)


def test_checking_needs_no_weights_and_changes_none(tmp_path: Path) -> None:
    model = build(CASES["linear"])
    edit = remove(directions(1), writers_of(CASES["linear"], model))
    with torch.device("meta"):
        blueprint = AutoModelForCausalLM.from_config(model.config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    delta = write_delta(
        edit, tmp_path / "delta", model=blueprint, read=reading(model), gains={}, base="x/y"
    )
    check_delta(delta.folder, model)

    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert set(before) == {name for name, _ in model.named_parameters()}


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    model = build(CASES["linear"])
    edit = remove(directions(1), writers_of(CASES["linear"], model))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")

    def unreadable(name: str) -> torch.Tensor:
        raise EditError(f"{name} cannot be read")

    with pytest.raises(OutputError):
        write(edit, tmp_path / "taken", model)
    with pytest.raises(EditError):
        write_delta(edit, tmp_path / "d", model=model, read=unreadable, gains={}, base="x/y")

    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken" / "file").read_text() == "mine"


@pytest.mark.parametrize("family", ["gemma2", "cohere", "falcon", "gpt2", "bloom", "opt", "zamba2"])
def test_a_tied_embedding_with_some_of_the_layers(family: str, tmp_path: Path) -> None:
    model = families.build(family)
    trace = trace_writers(model)
    vector = torch.randn(trace.width, generator=torch.Generator().manual_seed(0)).double()
    edit = remove(vector, trace.writers, layers=(0, 1))
    between = gains(model, trace.writers)
    ids = families.tokens(model)
    with torch.inference_mode(), applied(edit, model, between):
        wanted = model(input_ids=ids, use_cache=False).logits

    delta = write_delta(
        edit, tmp_path / "delta", model=model, read=model.get_parameter, gains=between, base="base"
    )

    assert not delta.left_out
    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "delta"))
    with torch.inference_mode():
        assert torch.allclose(
            wrapped(input_ids=ids, use_cache=False).logits, wanted, atol=1e-4, rtol=1e-4
        )


def test_strength_zero_where_fused_experts_alone_can_carry_an_adapter(tmp_path: Path) -> None:
    model = families.build("jetmoe")
    edit = remove(torch.ones(families.WIDTH).double(), trace_writers(model).writers, 0.0)
    ids = families.tokens(model)
    before = model(input_ids=ids, use_cache=False).logits

    write(edit, tmp_path / "delta", model)

    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "delta"))
    assert torch.equal(wrapped(input_ids=ids, use_cache=False).logits, before)
