"""What is fitted is what is written: the fit's own runtime form is that of the edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import applied
from abl_hub.model.chat import load_chat_model
from abl_hub.model.divergence import divergence
from abl_hub.model.gains import gains
from abl_hub.model.generate import continuations, greedy_replies, log_probs
from abl_hub.model.trace import trace_writers
from abl_hub.strengths.fit import Budget, Lesson, fit
from abl_hub.strengths.groups import groups, spread
from tests.chat_models import save_chat_model

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
_QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}


@pytest.mark.parametrize(
    ("architecture", "changes", "rank", "left"),
    [
        ("llama", {"tie_word_embeddings": True}, 1, ""),
        ("gpt_oss", _EXPERTS, 1, ""),
        # Its biases stay as they are, though they lie in the module that is hooked.
        ("gpt_oss", _EXPERTS, 1, "experts.down_proj_bias"),
        ("qwen3_moe", _QWEN_MOE, 2, "self_attn"),
        ("gemma2", {"head_dim": 8}, 1, "embed_tokens"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fit_s_form_is_that_of_the_edit(
    architecture: str,
    changes: dict[str, Any],
    rank: int,
    left: str,
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    chat = load_chat_model(save_chat_model(tmp_path, architecture, **changes), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for name, weight in chat.model.named_parameters():
        # A new model's biases are zero, and its blocks too quiet for an edit to matter.
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        weight.data = 4 * drawn if name.endswith("bias") else 5 * weight.data
    trace = trace_writers(chat.model)
    between, names = gains(chat.model, trace.writers), groups(trace)
    edit = remove(torch.randn(rank, trace.width, generator=generator), trace.writers)
    kept = [0.0 if left and left in writer.parameter else 1.0 for writer in trace.writers]
    assert (0.0 in kept) == bool(left)
    edit = replace(edit, strengths=tuple(kept))
    asked = [f"How do I bake {number}?" for number in range(4)]
    replies = greedy_replies(chat, asked, max_new_tokens=4)
    negative = continuations(chat, asked, replies)
    lesson = Lesson(
        positive=[chat.prompt_tokens(prompt) for prompt in asked],
        negative=negative,
        behaviour_tokens=(40, 41),
    )
    [point] = fit(chat, [edit], names, between, lesson, budget=Budget(steps=2, leaps=0)).points
    fitted = spread(names, point.strengths)
    written = replace(edit, strengths=tuple(a * b for a, b in zip(kept, fitted, strict=True)))
    before = dict(log_probs(chat, negative))
    with applied(written, chat.model, between):
        after = dict(log_probs(chat, negative))
    nats = [float(divergence(before[i].double(), after[i].double()).mean()) for i in before]
    expected = sum(nats) / len(nats)
    assert expected > 1e-3
    assert point.kl == pytest.approx(expected, rel=0.01 if dtype == torch.float32 else 0.1)
