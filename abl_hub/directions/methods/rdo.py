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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.directions.proposal import Proposal
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import divergence
from abl_hub.model.generate import continuations, greedy_replies
from abl_hub.model.stream import ablating, adding
from abl_hub.model.teacher_forcing import (
    Continuation,
    narrow_tables,
    portions,
    summed_means,
    together,
)

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
        kept_log_probs: of each of those replies, (tokens, vocabulary), float16.
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
        at = direction.detach().requires_grad_()
        for part in _losses(chat, at, layer, float(norm), targets, draw):
            part.backward()  # type: ignore[no-untyped-call]
        adam.zero_grad()
        direction.backward(at.grad)
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
    tables = narrow_tables(chat, kept)
    return _Targets(answers=answers, shown=shown, kept=kept, kept_log_probs=tables)


def _losses(
    chat: ChatModel,
    direction: torch.Tensor,
    layer: int,
    norm: float,
    targets: _Targets,
    draw: random.Random,
) -> Iterator[torch.Tensor]:
    """What the loss is the sum of, batch by batch: only one's graph has to be held."""
    answers = draw.sample(targets.answers, min(_BATCH, len(targets.answers)))
    for chosen in portions(chat, answers):
        part = [answers[index] for index in chosen]
        with ablating(chat.layers, direction[None]):
            yield _cross_entropy(chat, part) / len(answers)
    picked = draw.sample(range(len(targets.kept)), min(_BATCH, len(targets.kept)))
    kept = [targets.kept[index] for index in picked]
    for chosen in portions(chat, kept):
        part = [kept[index] for index in chosen]
        before = torch.cat([targets.kept_log_probs[picked[index]] for index in chosen])
        with ablating(chat.layers, direction[None]):
            after = together(chat, part)
            changed = summed_means(divergence(before.to(after), after), part)
            yield _KL_WEIGHT * changed / len(kept)
    shown = draw.sample(targets.shown, min(_BATCH, len(targets.shown)))
    for chosen in portions(chat, shown):
        part = [shown[index] for index in chosen]
        with adding(chat.layers, layer, norm * direction):
            yield _INDUCE_WEIGHT * _cross_entropy(chat, part) / len(shown)


def _cross_entropy(chat: ChatModel, sequences: Sequence[Continuation]) -> torch.Tensor:
    """The sum over sequences of their mean over tokens."""
    found = together(chat, sequences)
    wanted = [token for one in sequences for token in one.tokens[-one.judged :]]
    own = found.gather(1, torch.tensor(wanted, device=found.device)[:, None])[:, 0]
    return summed_means(-own, sequences)
