"""A pass that begins in the middle gives what a whole pass gives, and says where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.prefix import exact, last_logits, shared_prefix
from abl_hub.model.restart import RestartedPass
from abl_hub.model.stream import adding
from benchmarks.counting import counted
from tests.chat_models import save_chat_model

SHAPES = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4},
    "mamba": {"state_size": 8},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}


def ready(chat: ChatModel) -> RestartedPass:
    tokens = torch.randint(6, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    return RestartedPass(chat, tokens, torch.tensor([8, 6, 7]))


@pytest.mark.parametrize("architecture", SHAPES)
def test_addition_from_its_layer_on(architecture: str, tmp_path: Path) -> None:
    chat = load_chat_model(save_chat_model(tmp_path, architecture, **SHAPES[architecture]))
    batch = ready(chat)
    generator = torch.Generator().manual_seed(1)
    vector = 3 * torch.randn(chat.width, generator=generator)
    for layer in range(len(chat.layers) - 1):
        assert batch.exact(layer)
        with adding(chat.layers, layer, vector):
            whole = batch.last_logits()
        with counted(chat) as count:
            restarted, unchanged = batch.added(layer, torch.stack([vector, 0 * vector]))
        assert torch.allclose(unchanged, batch.base[0], atol=1e-4)
        assert float((whole - batch.base[0]).abs().max()) > 1e-3
        assert torch.allclose(restarted, whole, atol=1e-4)
        assert count.tokens == 2 * 3 * 9 * (len(chat.layers) - 1 - layer)
    assert torch.equal(batch.last_logits(), batch.base[0])


@pytest.mark.parametrize("architecture", SHAPES)
def test_a_shared_prefix_is_computed_once(architecture: str, tmp_path: Path) -> None:
    chat = load_chat_model(save_chat_model(tmp_path, architecture, **SHAPES[architecture]))
    tokens = ready(chat).tokens.clone()
    tokens[:, :4] = tokens[0, :4]
    batch = RestartedPass(chat, tokens, torch.tensor([8, 6, 7]))
    assert exact(chat, batch, 4) == (architecture != "mamba")
    if architecture != "mamba":
        with counted(chat) as count:
            found = last_logits(chat, batch, 4)
        assert torch.allclose(found, batch.base[0], atol=1e-4)
        assert count.tokens == len(chat.layers) * (4 + 3 * 5)


def test_what_prompts_begin_with() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert shared_prefix([[1, 2], [1, 2, 4]]) == 1
    assert shared_prefix([[3], [1, 2]]) == 0


def test_rows_of_a_pass_are_kept_with_what_was_computed(tmp_path: Path) -> None:
    batch = ready(load_chat_model(save_chat_model(tmp_path)))
    part = batch.rows([2, 0])
    assert torch.equal(part.base[0], batch.base[0][[2, 0]])
    again = part.added(1, torch.zeros(1, part.chat.width))
    assert torch.allclose(again[0], batch.base[0][[2, 0]], atol=1e-4)


def test_state_that_is_handed_past_the_stream_is_noticed(tmp_path: Path) -> None:
    chat = load_chat_model(save_chat_model(tmp_path))
    seen: list[torch.Tensor] = []

    # A later layer that reads what an earlier one has left beside the residual stream.
    def leave(_module: object, _inputs: object, output: torch.Tensor) -> None:
        seen[:] = [output]

    def read(_module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] + seen[-1], *inputs[1:]) if seen else inputs

    chat.layers[0].mlp.register_forward_hook(leave)
    chat.layers[3].register_forward_pre_hook(read)
    batch = ready(chat)
    assert batch.base[0].isfinite().all()
    # What it left is there still, but of as many rows as there were then.
    assert not batch.exact(1)
    seen.clear()
    chat.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not batch.exact(1)
