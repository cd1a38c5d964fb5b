"""Hooks on the stream: what they read, add and project, and that they leave the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from abl_hub.model.layers import decoder_layers
from abl_hub.model.stream import Projection, adding, projecting, reading
from tests.families import WIDTH, build, tokens


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = model(input_ids=tokens(model), use_cache=False).logits
    return answer


def outputs(model: Any) -> dict[int, torch.Tensor]:
    """Block outputs as `reading` gives them."""
    seen: dict[int, torch.Tensor] = {}
    with reading(decoder_layers(model)[1], seen.__setitem__):
        logits(model)
    return seen


def projection(seed: int = 7) -> Projection:
    """An oblique one: what is read and what is removed differ, and removing it twice is once."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64)
    remove = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64)
    return Projection(read=read, remove=remove / (remove @ read.T))


def written(weight: torch.Tensor, axis: int, change: Projection) -> torch.Tensor:
    """W − u (v · W) along `axis`, spelled out with one index at a time."""
    rows = weight.double().movedim(axis, 0)
    along = torch.einsum("kn,n...->k...", change.read, rows)
    return (rows - torch.einsum("kn,k...->n...", change.remove, along)).movedim(0, axis).float()


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """What is inside leaves no hook, no changed weight and no changed answer."""
    before = logits(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    storage = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    yield
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert storage == {name: weight.data_ptr() for name, weight in model.named_parameters()}
    assert torch.equal(logits(model), before)


# One parameter or module of every kind that a projection meets: family, axis by parameter.
_KINDS: dict[str, tuple[str, dict[str, int]]] = {
    "linear": ("llama", {"model.layers.1.mlp.down_proj.weight": 0}),
    "linear with its bias": (
        "phi",
        {"model.layers.1.mlp.fc2.weight": 0, "model.layers.1.mlp.fc2.bias": 0},
    ),
    "weight without its bias": ("phi", {"model.layers.1.mlp.fc2.weight": 0}),
    "bias without its weight": ("phi", {"model.layers.1.mlp.fc2.bias": 0}),
    "Conv1D with its bias": (
        "gpt2",
        {"transformer.h.1.mlp.c_proj.weight": 1, "transformer.h.1.mlp.c_proj.bias": 0},
    ),
    "Conv1D without its bias": ("gpt2", {"transformer.h.1.mlp.c_proj.weight": 1}),
    "embedding": ("llama", {"model.embed_tokens.weight": 1}),
    "positions": ("gpt2", {"transformer.wpe.weight": 1}),
    "bias of an embedding's norm": ("bloom", {"transformer.word_embeddings_layernorm.bias": 0}),
    "experts (E, d, k)": ("mixtral", {"model.layers.1.mlp.experts.down_proj": 1}),
    "experts (E, k, d) with their biases": (
        "gpt_oss",
        {
            "model.layers.1.mlp.experts.down_proj": 2,
            "model.layers.1.mlp.experts.down_proj_bias": 1,
        },
    ),
}


@pytest.mark.parametrize("kind", list(_KINDS))
def test_projecting_is_what_changed_weights_are(kind: str) -> None:
    family, axes = _KINDS[kind]
    model, change = build(family), projection()
    with unchanged(model):
        before = logits(model)
        with projecting(model, {name: (axis, change) for name, axis in axes.items()}):
            hooked = logits(model)
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for name, axis in axes.items():
        weight = model.get_parameter(name)
        weight.data = written(weight.data, axis, change)
    edited = logits(model)
    effect = float((edited - before).abs().max())
    assert effect > 1e-3
    assert float((hooked - edited).abs().max()) < 1e-4 * effect


def test_weight_and_bias_may_be_projected_differently() -> None:
    """As behind a norm, where the parameters of one module see other vectors."""
    model = build("phi")
    changes = {
        "model.layers.1.mlp.fc2.weight": (0, projection(1)),
        "model.layers.1.mlp.fc2.bias": (0, projection(2)),
    }
    before = logits(model)
    with unchanged(model), projecting(model, changes):
        hooked = logits(model)
    for name, (axis, change) in changes.items():
        weight = model.get_parameter(name)
        weight.data = written(weight.data, axis, change)
    edited = logits(model)
    assert float((hooked - edited).abs().max()) < 1e-4 * float((edited - before).abs().max())


@pytest.mark.parametrize(("own", "other"), [("down_proj", "_bias"), ("down_proj_bias", "")])
def test_experts_and_their_biases_may_be_projected_alone(own: str, other: str) -> None:
    model, change = build("gpt_oss"), projection()
    experts = "model.layers.1.mlp.experts"
    axis = 1 if own.endswith("bias") else 2
    before = logits(model)
    with (
        unchanged(model),
        projecting(
            model,
            {f"{experts}.{own}": (axis, change)},
            untouched={f"{experts}.down_proj{other}"},
        ),
    ):
        hooked = logits(model)
    weight = model.get_parameter(f"{experts}.{own}")
    weight.data = written(weight.data, axis, change)
    edited = logits(model)
    effect = float((edited - before).abs().max())
    assert effect > 1e-3
    assert float((hooked - edited).abs().max()) < 1e-4 * effect


def test_projections_that_take_nothing_change_nothing() -> None:
    model = build("gpt2")
    nothing = Projection(read=torch.ones(1, WIDTH), remove=torch.zeros(1, WIDTH))
    axes = {**_KINDS["Conv1D with its bias"][1], "transformer.wpe.weight": 1}
    before = logits(model)
    with projecting(model, {name: (axis, nothing) for name, axis in axes.items()}):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ["linear with its bias", "positions", "experts (E, d, k)"])
def test_an_interrupted_projection_leaves_the_model_as_it_was(kind: str) -> None:
    family, axes = _KINDS[kind]
    model = build(family)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        with projecting(model, {name: (axis, projection()) for name, axis in axes.items()}):
            raise KeyboardInterrupt


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granitemoehybrid"])
def test_reading_gives_every_block_output_once(family: str) -> None:
    model = build(family)
    with unchanged(model):
        seen = outputs(model)
    assert list(seen) == list(range(len(decoder_layers(model)[1])))
    with torch.inference_mode():
        states = model(
            input_ids=tokens(model), use_cache=False, output_hidden_states=True
        ).hidden_states
    for layer in range(len(seen) - 1):  # transformers' last one is after the final norm
        assert torch.equal(seen[layer], states[layer + 1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "granitemoehybrid"])
@pytest.mark.parametrize("layer", [0, 2])
def test_adding_shifts_one_block_output_and_what_follows(family: str, layer: int) -> None:
    model = build(family)
    layers = decoder_layers(model)[1]
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    before = outputs(model)
    with unchanged(model), adding(layers, layer, vector):
        after = outputs(model)
    for earlier in range(layer):
        assert torch.equal(after[earlier], before[earlier])
    assert torch.equal(after[layer], before[layer] + vector)
    assert not torch.allclose(after[layer + 1], before[layer + 1] + vector, atol=1e-3)


def test_an_interrupted_addition_leaves_the_model_as_it_was() -> None:
    model = build("llama")
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        with adding(decoder_layers(model)[1], 1, torch.ones(WIDTH)):
            raise KeyboardInterrupt


def test_a_projection_keeps_the_dtype_and_computes_in_float32() -> None:
    generator = torch.Generator().manual_seed(7)
    r = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64)
    r = r / r.norm()
    writes = torch.randn(5, 3, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    answer = Projection(read=r, remove=r)(writes)
    exact = writes.double() - (writes.double() @ r.T) @ r
    assert answer.dtype is torch.bfloat16
    # Half a unit in the last place: one rounding, at the end.
    assert bool(((answer.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-6).all())
