"""Prompts that share a row get what they get alone, and a model that mixes them is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from abl_hub.model.chat import load_chat_model
from abl_hub.model.packed import by_prefix, packed, packs
from abl_hub.model.restart import RestartedPass
from abl_hub.model.stream import adding
from benchmarks.counting import counted
from tests.chat_models import save_chat_model
from tests.model.test_restart import SHAPES

PROMPTS = [[1, 7, 8, 9, 20, 21], [1, 7, 8, 30], [1, 40, 41, 42, 43, 44, 45], [1, 7, 8, 9, 20]]
DISTINCT = 1 + 5 + 1 + 6


@pytest.mark.parametrize("architecture", sorted({*SHAPES} - {"mamba"}))
def test_prompts_in_one_row(architecture: str, tmp_path: Path) -> None:
    chat = load_chat_model(save_chat_model(tmp_path, architecture, **SHAPES[architecture]))
    assert packs(chat, PROMPTS)
    pack = packed(chat, PROMPTS)
    vector = 3 * torch.randn(chat.width, generator=torch.Generator().manual_seed(1))
    plain = [
        RestartedPass(chat, torch.tensor([prompt]), torch.tensor([len(prompt) - 1]))
        for prompt in PROMPTS
    ]
    with counted(chat) as count:
        unedited = pack.last_logits()
    assert count.tokens == len(chat.layers) * DISTINCT
    alone = torch.cat([one.last_logits() for one in plain])
    assert torch.allclose(unedited, alone, atol=1e-4)
    assert pack.exact(1)
    with adding(chat.layers, 1, vector):
        whole = torch.cat([one.last_logits() for one in plain])
    for batch, kept in ((pack, [0, 1, 2, 3]), (pack.rows([2, 1]), [2, 1])):
        with counted(chat) as count:
            restarted, unchanged = batch.added(1, torch.stack([vector, 0 * vector]))
        assert torch.allclose(restarted, whole[kept], atol=1e-4)
        assert torch.allclose(unchanged, alone[kept], atol=1e-4)
        assert count.tokens == 2 * batch.tokens.shape[1] * (len(chat.layers) - 2)
    assert float((whole - alone).abs().max()) > 1e-3


def test_rows_leave_the_tokens_of_the_others_out(tmp_path: Path) -> None:
    chat = load_chat_model(save_chat_model(tmp_path))
    part = packed(chat, PROMPTS).rows([1, 3])
    assert part.tokens.tolist() == [[1, 7, 8, 9, 20, 30]]
    assert torch.allclose(part.last_logits(), part.base[0], atol=1e-4)
    assert part.exact(1)


def test_a_running_state_is_noticed(tmp_path: Path) -> None:
    chat = load_chat_model(save_chat_model(tmp_path, "mamba", **SHAPES["mamba"]))
    assert not packs(chat, PROMPTS)


def test_a_window_that_a_prompt_does_not_fit_into_is_noticed(tmp_path: Path) -> None:
    chat = load_chat_model(save_chat_model(tmp_path, "gemma2", head_dim=8, sliding_window=4))
    # A mask that is given stands for every layer, so the window would be lost.
    assert packs(chat, [[1, 2, 3], [1, 4, 5]])
    assert not packs(chat, [[1, *range(6, 40)], [1, 4, 5]])


def test_packs_are_of_like_beginnings_and_not_too_long() -> None:
    assert by_prefix(PROMPTS, rows=2) == [[3, 0], [1, 2]]
    assert by_prefix([[1] * 600, [2] * 600, [3] * 2000], rows=8) == [[0], [1], [2]]
