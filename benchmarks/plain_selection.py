"""The baseline of `selection.py`: the paper's selection as a plain loop (Arditi et al. 2024, 2.3).

Every candidate is judged on every validation prompt: bypass and KL under ablation, induce under
addition, a whole forward pass each. Then: KL above 0.1, induce below 0, or the last fifth of the
layers are out; of the rest, the lowest bypass wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import (
    MAX_DEPTH,
    MAX_KL,
    MIN_INDUCE,
    Ablation,
    Validation,
    log_odds,
)
from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.stream import adding


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One candidate's scores on all validation prompts."""

    proposal: Proposal
    bypass: float
    induce: float
    kl: float


def plain_selection(
    chat: ChatModel, proposals: Sequence[Proposal], validation: Validation, ablate: Ablation
) -> tuple[Judged, list[Judged]]:
    """The winner and all that were judged."""
    allowed = max(1, int(MAX_DEPTH * len(chat.layers)) - 1)
    base = validation.sides[1].log_probs.double()
    judged = []
    for proposal in proposals:
        if proposal.layer >= allowed:
            continue
        with ablate(proposal):
            positive = next_token_log_probs(chat, validation.positive)
            negative = next_token_log_probs(chat, validation.negative).double()
        with adding(chat.layers, proposal.layer, proposal.addition):
            added = next_token_log_probs(chat, validation.negative)
        judged.append(
            Judged(
                proposal=proposal,
                bypass=float(log_odds(positive, validation.tokens).mean()),
                induce=float(log_odds(added, validation.tokens).mean()),
                kl=float((base.exp() * (base - negative)).sum(-1).mean()),
            )
        )
    gentle = [one for one in judged if one.kl <= MAX_KL]
    kept = [one for one in gentle if one.induce >= MIN_INDUCE]
    if not kept and not gentle:
        return min(judged, key=lambda one: one.kl), judged
    return min(kept or gentle, key=lambda one: one.bypass), judged
