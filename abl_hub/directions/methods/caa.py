"""Mean of paired completions (contrastive activation addition: Panickssery et al. 2023).

Every prompt is given both endings: the opening of a reply that shows the behaviour, and of one that
does not; what is compared is the residual stream over the endings' tokens, so that the prompt is
the same on both sides. The endings are the model's own replies: each prompt keeps its own and
borrows the other from a prompt of the other side.
"""

from __future__ import annotations

import random

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.projected import without
from abl_hub.directions.proposal import Proposal, single
from abl_hub.model.batches import by_length, right_padded
from abl_hub.model.generate import greedy_replies
from abl_hub.model.stream import reading

_PROMPTS = 48
_ENDING_TOKENS = 16


def propose(evidence: Evidence) -> list[Proposal]:
    """One direction for every layer, at position 0: over the reply."""
    shown, ordinary = _means(evidence)
    vectors = without(shown - ordinary, ordinary)
    return [single(vector, layer, 0) for layer, vector in enumerate(vectors) if vector.any()]


@torch.inference_mode()
def _means(evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean stream over endings that show the behaviour, and over those that do not.

    (layers, width) each, float64.
    """
    chat, contrast = evidence.chat, evidence.contrast
    positive = contrast.positive.train[:_PROMPTS]
    negative = contrast.negative.train[:_PROMPTS]
    showing, answering = (
        [
            reply.tokens
            for reply in greedy_replies(
                chat, side, max_new_tokens=_ENDING_TOKENS, rows=evidence.rows
            )
            if reply.tokens
        ]
        for side in (positive, negative)
    )
    draw = random.Random(evidence.seed)
    pairs = [(showing[i % len(showing)], draw.choice(answering)) for i in range(len(positive))] + [
        (draw.choice(showing), answering[i % len(answering)]) for i in range(len(negative))
    ]
    prompts = [chat.prompt_tokens(prompt) for prompt in (*positive, *negative)]
    return (
        _over_endings(evidence, prompts, [shown for shown, _ in pairs]),
        _over_endings(evidence, prompts, [answer for _, answer in pairs]),
    )


def _over_endings(
    evidence: Evidence, prompts: list[list[int]], endings: list[tuple[int, ...]]
) -> torch.Tensor:
    """Mean over endings of the mean over each ending's tokens, (layers, width), float64."""
    chat = evidence.chat
    sequences = [[*prompt, *ending] for prompt, ending in zip(prompts, endings, strict=True)]
    total = torch.zeros(len(chat.layers), chat.width, dtype=torch.float64)
    chosen: list[int] = []

    def add(layer: int, hidden: torch.Tensor) -> None:
        for row, index in enumerate(chosen):
            span = slice(len(prompts[index]), len(sequences[index]))
            total[layer] += hidden[row, span].double().mean(0).cpu()

    with reading(chat.layers, add):
        for indices in by_length(sequences, rows=evidence.rows):
            chosen[:] = indices
            tokens = right_padded([sequences[index] for index in indices], device=chat.device)
            chat.model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    return total / len(sequences)
