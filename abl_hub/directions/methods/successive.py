"""Several directions, one after the other: each a difference in means with those before it ablated.

For behaviours with a spare: a model can hold a second direction in reserve that the activations of
the whole model hardly show, and no spectrum of theirs tells of. So each further difference is taken
in the model as it runs without the directions found so far (as iterative null-space projection
does, Ravfogel et al. 2020, with a retrained probe in place of a model that runs again). Each is
projected, so that zero is the ordinary value in all of them.
"""

from __future__ import annotations

import torch

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.evidence import Evidence, activations
from abl_hub.directions.methods.projected import projected_mean_difference
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import allowed_layers
from abl_hub.model.chat import ChatModel
from abl_hub.model.stream import ablating

_ASKED = 64
_NOTHING = 1e-6


def propose(evidence: Evidence) -> list[Proposal]:
    """Subspaces of 2 … `rank` directions at the prompt's last token, for every allowed layer."""
    found = []
    for layer in range(allowed_layers(evidence.means.shape[0])):
        rows = successive(
            evidence.chat, evidence.contrast, layer, evidence.rank, rows=evidence.rows
        )
        basis = rows / rows.norm(dim=-1, keepdim=True)
        found += [
            Proposal(layer=layer, position=-1, basis=basis[:rank], addition=rows[0])
            for rank in range(2, len(rows) + 1)
        ]
    return found


def successive(
    chat: ChatModel, contrast: Contrast, layer: int, count: int, *, rows: int = 32
) -> torch.Tensor:
    """At most `count` orthogonal directions at `layer`, (k, width), float64, as long as they are.

    Of at most 64 training prompts a side; fewer directions where no difference is left.
    """
    found = _difference(chat, contrast, layer, rows)[None]
    while len(found) < count:
        basis = found / found.norm(dim=-1, keepdim=True)
        with ablating(chat.layers, basis.float()):
            further = _difference(chat, contrast, layer, rows)
        further = further - (further @ basis.T) @ basis
        if float(further.norm()) <= _NOTHING * float(found[0].norm()):
            break
        found = torch.cat([found, further[None]])
    return found


def _difference(chat: ChatModel, contrast: Contrast, layer: int, rows: int) -> torch.Tensor:
    one, other = (
        activations(chat, side.train[:_ASKED], positions=1, rows=rows)[:, layer, -1]
        for side in (contrast.positive, contrast.negative)
    )
    return projected_mean_difference(one, other)
