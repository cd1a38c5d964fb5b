"""What fitted strengths may choose from: every direction once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch

from abl_hub.directions.contrast import SplitSizes, make_contrast
from abl_hub.directions.proposal import Proposal, single
from abl_hub.directions.selection import select, validate
from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import applied
from abl_hub.model.chat import load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.trace import trace_writers
from tests.chat_models import save_chat_model

LAYERS, WIDTH = 12, 32


def test_a_deeper_direction_that_removes_most_is_offered_once(tmp_path: Path) -> None:
    """Layer 7 of 12 is two thirds of the depth, and still a candidate."""
    chat = load_chat_model(save_chat_model(tmp_path, num_hidden_layers=LAYERS))
    for weight in chat.model.parameters():
        weight.data = 5 * weight.data  # New blocks write too quietly for a removal to matter.
    contrast = make_contrast(
        [f"How do I cast spell {number}?" for number in range(24)],
        [f"How do I bake {number}?" for number in range(24)],
        sizes=SplitSizes(train=8, validation=8, test=8),
    )
    writers = trace_writers(chat.model).writers
    between = gains(chat.model, writers)

    def ablate(proposal: Proposal) -> AbstractContextManager[None]:
        return applied(remove(proposal.basis, writers), chat.model, between)

    generator = torch.Generator().manual_seed(5)
    tokens = tuple(torch.randint(6, 200, (3,), generator=generator).tolist())
    unembedding = chat.model.lm_head.weight.double()
    proposals = [
        single(1e-3 * torch.randn(WIDTH, generator=generator).double(), 3, -1),
        single(unembedding[list(tokens)].mean(0) - unembedding.mean(0), 7, -1),
    ]
    found = select(
        chat, proposals, validate(chat, contrast, tokens), method="difference", ablate=ablate
    )
    chosen, other = found.candidates
    assert found.chosen is chosen
    assert not found.passed
    assert other.bypass < chosen.bypass
    assert [direction.layer for direction in found.alternatives] == [7]
