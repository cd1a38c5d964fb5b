"""Traced writers, on about thirty families that cover every mechanism.

For each: the component is there before and gone after, in the stream, to float32's rounding. Names
of writers that a person wrote down agree with what was traced.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoConfig

from abl_hub.edits.edit import Edit, factors, remove
from abl_hub.edits.hooks import applied
from abl_hub.errors import UnsupportedModelError
from abl_hub.model.check import residual
from abl_hub.model.gains import gains
from abl_hub.model.meta import meta_model, wrapper_of
from abl_hub.model.trace import trace_writers
from tests.families import WIDTH, build, tiny_config, tiny_wrapper_config, tokens

# What writes to the stream, by hand, from each architecture's own modelling code. `*` is a layer.
_DENSE = {"embed_tokens.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight"}
_MOE = {"embed_tokens.weight", "self_attn.o_proj.weight", "mlp.experts.down_proj"}
_BY_HAND: dict[str, set[str]] = {
    "llama": _DENSE,
    "mistral": _DENSE,
    "qwen2": _DENSE,
    "qwen3": _DENSE,
    "phi3": _DENSE,
    "gemma": _DENSE,
    "gemma2": _DENSE,
    "gemma3_text": _DENSE,
    "olmo2": _DENSE,
    "granite": _DENSE,
    "cohere": _DENSE,
    "mixtral": _MOE,
    "qwen3_moe": _MOE,
    "gpt_oss": _MOE | {"self_attn.o_proj.bias", "mlp.experts.down_proj_bias"},
    "gpt2": {
        "wte.weight", "wpe.weight", "attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight",
        "mlp.c_proj.bias",
    },
    "gpt_neox": {
        "embed_in.weight", "attention.dense.weight", "attention.dense.bias",
        "mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias",
    },
    "phi": {
        "embed_tokens.weight", "self_attn.dense.weight", "self_attn.dense.bias", "mlp.fc2.weight",
        "mlp.fc2.bias",
    },
    "opt": {
        "embed_tokens.weight", "embed_positions.weight", "self_attn.out_proj.weight",
        "self_attn.out_proj.bias", "fc2.weight", "fc2.bias",
    },
    "bloom": {
        "word_embeddings.weight", "word_embeddings_layernorm.bias", "self_attention.dense.weight",
        "self_attention.dense.bias", "mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias",
    },
    "starcoder2": {
        "embed_tokens.weight", "self_attn.o_proj.weight", "self_attn.o_proj.bias",
        "mlp.c_proj.weight", "mlp.c_proj.bias",
    },
    "mamba2": {"embeddings.weight", "mixer.out_proj.weight"},
}  # fmt: skip
_OTHERS = (
    "deepseek_v3", "falcon", "falcon_h1", "glm4", "glm4_moe", "granitemoehybrid", "jamba", "lfm2",
    "nemotron_h", "qwen3_next", "smollm3", "stablelm",
)  # fmt: skip
_RESCALED = {"gemma2", "gemma3_text", "olmo2", "glm4", "bloom"}


def edit_of(model: Any) -> Edit:
    r = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return remove(r, trace_writers(model).writers)


def in_memory(model: Any, edit: Edit) -> Any:
    """A copy of the model with the edit in its weights, the head untied: the plain way."""
    edited = copy.deepcopy(model)
    head = edited.get_output_embeddings()
    if head is not None and head.weight is edited.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    between = gains(model, edit.writers)
    with torch.no_grad():
        for writer, strength in zip(edit.writers, edit.strengths, strict=True):
            change = factors(edit, writer, strength, between)
            weight = edited.get_parameter(writer.parameter)
            moved = weight.double().movedim(writer.axis, -1)
            moved = moved - (moved @ change.read.T) @ change.remove
            weight.copy_(moved.movedim(-1, writer.axis))
    return edited


@pytest.mark.parametrize("family", [*_BY_HAND, *_OTHERS])
def test_the_component_is_gone_and_a_random_one_is_not(family: str) -> None:
    model = build(family)
    edit = edit_of(model)
    ids = tokens(model)
    assert residual(model, ids, edit.directions) > 0.05
    other = torch.randn(WIDTH, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    other = other - (other @ edit.directions[0]) * edit.directions[0]
    edited = in_memory(model, edit)
    assert residual(edited, ids, edit.directions) <= 1e-5
    assert residual(edited, ids, (other / other.norm())[None]) > 0.05
    with torch.inference_mode():
        before = model(input_ids=ids, use_cache=False).logits
        with applied(edit, model, gains(model, edit.writers)):
            assert residual(model, ids, edit.directions) <= 1e-5
            hooked = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)
        merged = edited(input_ids=ids, use_cache=False).logits
    assert float((hooked - before).abs().max()) > 1e-3
    assert float((hooked - merged).abs().max()) < 1e-4 * float(before.abs().max())
    rescaled = any(writer.rescaled for writer in edit.writers)
    assert rescaled == (family in _RESCALED)


@pytest.mark.parametrize("family", list(_BY_HAND))
def test_what_a_person_wrote_down_is_what_was_traced(family: str) -> None:
    trace = trace_writers(build(family))
    traced = {
        re.sub(rf"^{re.escape(trace.layers)}\.\d+\.", "", writer.parameter)
        if writer.layer is not None
        else re.sub(r"^(model|transformer|gpt_neox|backbone)\.(decoder\.)?", "", writer.parameter)
        for writer in trace.writers
    }
    assert traced == _BY_HAND[family]
    for suffix in _BY_HAND[family]:
        layers = {w.layer for w in trace.writers if w.parameter.endswith("." + suffix)}
        assert layers in ({None}, set(range(trace.layer_count)))


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", "mixtral", "bloom", "gemma2", "granitemoehybrid", "dbrx", "jetmoe"],
)
def test_the_trace_needs_no_weights(family: str) -> None:
    """The code of the last two asks how many tokens each expert got."""
    assert trace_writers(meta_model(tiny_config(family))) == trace_writers(build(family))


def test_a_model_of_671_billion_parameters_is_traced_without_one() -> None:
    model = meta_model(AutoConfig.for_model("deepseek_v3"))
    trace = trace_writers(model)
    assert sum(weight.numel() for weight in model.parameters()) > 6e11
    assert (trace.layer_count, trace.width) == (61, 7168)
    experts = [writer for writer in trace.writers if len(writer.shape) == 3]
    assert len(experts) == 58
    assert experts[0].shape == (256, 7168, 2048)


def test_the_check_notices_a_writer_that_was_forgotten() -> None:
    model = build("llama")
    edit = edit_of(model)
    ids = tokens(model)
    for forgotten in range(len(edit.writers)):
        strengths = tuple(float(i != forgotten) for i in range(len(edit.writers)))
        partial = Edit(directions=edit.directions, writers=edit.writers, strengths=strengths)
        assert residual(in_memory(model, partial), ids, edit.directions) > 1e-3


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("rwkv", "product of two activations"),
        ("gemma3n_text", "under two directions"),
        ("minimax", "under two directions"),
        ("longcat_flash", "under two directions"),
        ("doge", "under two directions"),
        ("openai-gpt", "under two directions"),
        ("bart", "under two directions"),
        ("roberta", "without a rule"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_its_reason(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        trace_writers(build(family))


class ListedExperts(torch.nn.Module):
    """Mixture of experts as code from the Hub often has it: a list, of which only those run that
    a token was sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(WIDTH, 8, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(8))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, WIDTH)
        weights, chosen = self.gate(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for expert in chosen.unique().tolist():
            token, rank = torch.where(chosen == expert)
            out.index_add_(0, token, self.experts[expert](flat[token]) * weights[token, rank, None])
        return out.view_as(hidden)


class Moved(torch.nn.Module):
    """A linear map and something that is done to what it puts out."""

    def __init__(self, width: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.map = torch.nn.Linear(WIDTH, width, bias=False)
        self.change = change

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.change(self.map(hidden))


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("width", "change", "reason"),
    [
        (WIDTH, lambda y: y.flip(-1), "features change places"),
        (WIDTH, lambda y: y.roll(3, -1), "features change places"),
        (WIDTH, lambda y: y.cumsum(-1), "features change places"),
        (WIDTH, lambda y: y[..., list(reversed(range(WIDTH)))], "features change places"),
        (2 * WIDTH, lambda y: y[..., :WIDTH], "other features than the stream"),
        (WIDTH // 2, lambda y: y.repeat(1, 1, 2), "other features than the stream"),
        (WIDTH // 2, lambda y: pad(y, (0, WIDTH // 2)), "other features than the stream"),
        (1, lambda y: y.expand(-1, -1, WIDTH), "other features than the stream"),
        (WIDTH, lambda y: y.abs(), "without a rule"),
    ],
)
def test_features_that_are_not_the_stream_s_are_refused_with_the_module(
    width: int, change: Callable[[torch.Tensor], torch.Tensor], reason: str, device: str
) -> None:
    model = meta_model(tiny_config("llama")) if device == "meta" else build("llama")
    with torch.device(device):
        model.model.layers[1].mlp = Moved(width, change)
    with pytest.raises(UnsupportedModelError, match=rf"{reason}.* \(in model\.layers\.1\.mlp: "):
        trace_writers(model)


class Scaled(torch.nn.Module):
    """A linear map with a gain for each feature, both held by one module (LayerScale)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.randn(WIDTH))
        self.map = torch.nn.Linear(WIDTH, WIDTH)
        self.squashed = False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.map(hidden) * (self.gain.sigmoid() if self.squashed else self.gain)


def test_a_gain_beside_other_weights_is_read_as_it_is() -> None:
    model = build("llama")
    model.model.layers[1].mlp = Scaled()
    edit = edit_of(model)
    with applied(edit, model, gains(model, edit.writers)):
        assert residual(model, tokens(model), edit.directions) <= 1e-5


def test_a_gain_that_is_made_of_a_parameter_is_refused() -> None:
    model = build("llama")
    model.model.layers[1].mlp = Scaled()
    model.model.layers[1].mlp.squashed = True
    with pytest.raises(UnsupportedModelError, match="product of two activations"):
        trace_writers(model)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_experts_that_did_not_run_are_not_forgotten(device: str) -> None:
    model = meta_model(tiny_config("llama")) if device == "meta" else build("llama")
    with torch.device(device):
        for layer in model.model.layers:
            layer.mlp = ListedExperts()
    with pytest.raises(UnsupportedModelError, match=r"experts\.\d\.weight did not run"):
        trace_writers(model)


def test_layers_that_run_on_images_only_are_not_forgotten() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layers\.3\.mlp.* did not run"):
        trace_writers(build("mllama", wrapper=True))


@pytest.mark.parametrize("family", ["xglm", "ctrl", "pegasus"])
def test_constants_that_no_graph_shows_are_caught_by_the_number(family: str) -> None:
    """Sinusoidal positions are added to the stream and are no parameter."""
    model = build(family)
    edit = edit_of(model)
    with applied(edit, model, gains(model, edit.writers)):
        assert residual(model, tokens(model), edit.directions) > 1e-3


@pytest.mark.parametrize(
    ("config", "wrapper"),
    [
        (tiny_wrapper_config("llava"), "LlavaForConditionalGeneration"),
        (tiny_wrapper_config("llama4"), "Llama4Config"),  # its causal class is of the text alone
        (tiny_config("llama"), None),
    ],
)
def test_of_what_a_model_is_the_language_part(
    config: Any, wrapper: str | None, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    assert wrapper_of(tmp_path, meta_model(tmp_path)) == wrapper


def test_of_a_wrapper_the_language_path_is_traced() -> None:
    trace = trace_writers(build("llava", wrapper=True))
    assert not [writer for writer in trace.writers if "vision" in writer.parameter]
    assert len(trace.writers) == 2 * trace.layer_count + 1
