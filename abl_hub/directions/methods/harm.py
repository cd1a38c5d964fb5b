"""Recognising harm rather than acting on it: read at the instruction's own last token (DBDI).

What a prompt is about is told there; whether to refuse, at the end of the template's tokens behind
it. The paper's candidates are all of the second kind; this is the projected difference in means at
the one token before them.
"""

from __future__ import annotations

from abl_hub.directions.evidence import Evidence, activations
from abl_hub.directions.methods.projected import projected_mean_difference
from abl_hub.directions.proposal import Proposal, single


def propose(evidence: Evidence) -> list[Proposal]:
    """One direction for every layer, at the token before the post-instruction ones."""
    chat, contrast = evidence.chat, evidence.contrast
    positions = len(chat.post_instruction_tokens) + 1
    positive, negative = (
        activations(chat, side.train, positions=positions, rows=evidence.rows)[:, :, 0]
        for side in (contrast.positive, contrast.negative)
    )
    vectors = projected_mean_difference(positive, negative)
    return [
        single(vector, layer, -positions) for layer, vector in enumerate(vectors) if vector.any()
    ]
