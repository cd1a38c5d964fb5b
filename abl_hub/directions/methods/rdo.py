"""Refusal direction optimisation and concept cones (Wollschläger et al. 2025).

Directions refined by gradient from the projected difference in means: with the direction ablated,
positive prompts should be answered; with it added, negative prompts should show the behaviour; and
with it ablated, replies to negative prompts should stay what they were. A cone of k directions is
trained by sampling directions from its positive part, and removed whole.

The answers that positive prompts should get are what the model says with the first direction
ablated; the behaviour that negative prompts should show is what it says to positive prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.proposal import Proposal
from abl_hub.model.batches import right_padded
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import divergence
from abl_hub.model.generate import Continuation, continuations, greedy_replies
from abl_hub.model.stream import ablating, adding

# The paper's weights and rate; fewer, larger steps from a start that is good already.
_INDUCE_WEIGHT = 0.2
_KL_WEIGHT = 1.0
_RATE = 0.01
_STEPS = 40
_BATCH = 16
_TARGET_TOKENS = 24
_PROMPTS = 64


def propose(evidence: Evidence) -> list[Proposal]:
    """One refined direction, at the layer that separates the two sides best."""
    return [_refined(evidence, 1)]


def propose_cone(evidence: Evidence) -> list[Proposal]:
    """Cones of 2 … `rank` directions at that layer."""
    return [_refined(evidence, rank) for rank in range(2, evidence.rank + 1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Targets:
    """What the model should say.

    Args:
        answers: positive prompts followed by answers.
        shown: negative prompts followed by replies that show the behaviour.
        kept: negative prompts followed by the model's own replies.
        kept_log_probs: of each of those replies, (tokens, vocabulary).
    """

    answers: list[Continuation]
    shown: list[Continuation]
    kept: list[Continuation]
    kept_log_probs: list[torch.Tensor]


def _refined(evidence: Evidence, rank: int) -> Proposal:
    chat = evidence.chat
    layer = _separating_layer(evidence)
    ordinary = evidence.means.negative.activations[layer, -1]
    start = without(difference_in_means(evidence.means)[layer, -1], ordinary)
    norm = start.norm()
    targets = _targets(evidence, (start / norm)[None])
    generator = torch.Generator().manual_seed(evidence.seed)
    around = torch.randn(rank, chat.width, generator=generator, dtype=torch.float64)
    around = 0.1 * around / around.norm(dim=-1, keepdim=True)
    around[0] = 0
    rows = ((start / norm)[None] + around).float().to(chat.device).requires_grad_()
    adam = torch.optim.Adam([rows], lr=_RATE)
    draw = random.Random(evidence.seed)
    for _ in range(_STEPS):
        basis = torch.linalg.qr(rows.T).Q.T
        basis = basis * torch.sign((basis * rows).sum(-1, keepdim=True)).detach()
        # Any direction in the positive part of the cone has to do what the first one does.
        mixed = torch.rand(rank, generator=generator).to(basis) @ basis
        direction = mixed / mixed.norm() if rank > 1 else basis[0]
        loss = _loss(chat, direction, layer, float(norm), targets, draw)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    found = torch.linalg.qr(rows.detach().double().cpu().T).Q.T
    found = found * torch.sign((found * rows.detach().double().cpu()).sum(-1, keepdim=True))
    return Proposal(layer=layer, position=-1, basis=found, addition=norm * found[0])


def _separating_layer(evidence: Evidence) -> int:
    """The layer below 0.8 L where the difference is largest against the spread along it."""
    positive = evidence.samples.positive[:, :, -1].double()
    negative = evidence.samples.negative[:, :, -1].double()
    best, layer = -1.0, 0
    for index in range(max(1, int(0.8 * positive.shape[1]) - 1)):
        one, other = positive[:, index], negative[:, index]
        difference = one.mean(0) - other.mean(0)
        unit = difference / difference.norm().clamp_min(1e-300)
        spread = ((one @ unit).var() + (other @ unit).var()).sqrt().clamp_min(1e-300)
        if float(difference.norm() / spread) > best:
            best, layer = float(difference.norm() / spread), index
    return layer


def _targets(evidence: Evidence, basis: torch.Tensor) -> _Targets:
    chat, contrast = evidence.chat, evidence.contrast
    positive = contrast.positive.train[:_PROMPTS]
    negative = contrast.negative.train[:_PROMPTS]

    def replies(prompts: Sequence[str]) -> list[Continuation]:
        said = greedy_replies(chat, prompts, max_new_tokens=_TARGET_TOKENS, rows=evidence.rows)
        return continuations(chat, prompts, said)

    with ablating(chat.layers, basis):
        answers = replies(positive)
    showing = replies(positive)
    kept = replies(negative)
    shown = []
    for index, prompt in enumerate(negative):
        ending = showing[index % len(showing)]
        tokens = (*chat.prompt_tokens(prompt), *ending.tokens[-ending.judged :])
        shown.append(Continuation(tokens=tokens, judged=ending.judged))
    with torch.no_grad():
        # In parts, as the loss will need them.
        tables = [
            table
            for first in range(0, len(kept), _BATCH)
            for table in _log_probs(chat, kept[first : first + _BATCH])
        ]
    return _Targets(answers=answers, shown=shown, kept=kept, kept_log_probs=tables)


def _loss(
    chat: ChatModel,
    direction: torch.Tensor,
    layer: int,
    norm: float,
    targets: _Targets,
    draw: random.Random,
) -> torch.Tensor:
    with ablating(chat.layers, direction[None]):
        answered = _cross_entropy(chat, _drawn(targets.answers, draw))
        indices = draw.sample(range(len(targets.kept)), min(_BATCH, len(targets.kept)))
        after = _log_probs(chat, [targets.kept[i] for i in indices])
    before = [targets.kept_log_probs[i] for i in indices]
    changed = torch.stack(
        [divergence(b, a).mean() for b, a in zip(before, after, strict=True)]
    ).mean()
    with adding(chat.layers, layer, norm * direction):
        induced = _cross_entropy(chat, _drawn(targets.shown, draw))
    return answered + _INDUCE_WEIGHT * induced + _KL_WEIGHT * changed


def _drawn(items: list[Continuation], draw: random.Random) -> list[Continuation]:
    return draw.sample(items, min(_BATCH, len(items)))


def _cross_entropy(chat: ChatModel, sequences: Sequence[Continuation]) -> torch.Tensor:
    losses = []
    for one, table in zip(sequences, _log_probs(chat, sequences), strict=True):
        wanted = torch.tensor(one.tokens[-one.judged :], device=table.device)
        losses.append(cross_entropy(table, wanted))
    return torch.stack(losses).mean()


def _log_probs(chat: ChatModel, sequences: Sequence[Continuation]) -> list[torch.Tensor]:
    """Log-probabilities over each one's judged tokens, with gradients."""
    tokens = right_padded([one.tokens for one in sequences], device=chat.device)
    logits = chat.model(input_ids=tokens, use_cache=False).logits.float()
    return [
        logits[row, len(one.tokens) - one.judged - 1 : len(one.tokens) - 1].log_softmax(-1)
        for row, one in enumerate(sequences)
    ]
