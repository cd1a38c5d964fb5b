"""The candidates whose addition brings the behaviour about most (Arditi et al. 2024, section 2.4).

For `--induce`: what is judged is the constant that will be written, at layers that can carry one,
by the first token of the replies to prompts that do not show the behaviour. Which of the best is
taken, whole replies decide; that is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from abl_hub.directions.direction import Direction
from abl_hub.directions.jury import Jury, Scores
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.race import judge_additions, mean
from abl_hub.directions.selection import (
    MIN_INDUCE,
    Candidate,
    Validation,
    allowed_layers,
    direction_of,
    log_odds,
)
from abl_hub.errors import ContrastError
from abl_hub.model.chat import ChatModel
from abl_hub.progress import SILENT, Progress

BEST = 4
"""How many layers of a method are judged by whole replies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inducing:
    """One method's candidates, judged by their addition.

    Args:
        best: of each of its best layers the candidate that induces most, and its direction.
        candidates: all of them, in the method's order.
    """

    best: tuple[tuple[Candidate, Direction], ...]
    candidates: tuple[Candidate, ...]


def inducing(
    chat: ChatModel,
    proposals: Sequence[Proposal],
    validation: Validation,
    *,
    method: str,
    layers: Collection[int],
    strength: float,
    behaviour: str = "refusal",
    progress: Progress = SILENT,
) -> Inducing:
    """Judge the proposals of `method` at `layers`, each added `strength` times as long as it is.

    Raises:
        ContrastError: there is none, or none leaves the model's outputs finite.
    """
    below = allowed_layers(len(chat.layers))
    tried = [one for one in proposals if one.layer < below and one.layer in layers]
    jury = Jury(
        chat,
        *validation.sides,
        log_odds=partial(log_odds, tokens=validation.tokens),
        ablate=lambda _proposal: nullcontext(),
    )
    field = [Scores(proposal=replace(one, addition=strength * one.addition)) for one in tried]
    with progress.stage(f"Judging {len(tried)} {method} additions", jury.rounds) as advance:
        for number in range(jury.rounds):
            judge_additions(jury, field, number)
            advance(1)
    judged = [(_candidate(scores, one), one) for scores, one in zip(field, tried, strict=True)]
    finite = [one for one in judged if one[0].discarded is None]
    if not finite:
        raise ContrastError(
            f"{method} found nothing that could be added",
            why="no layer that can carry a constant has a difference between the prompt sets",
            next_step="Check --positive and --negative, or try --dtype float32",
        )
    best: dict[int, tuple[Candidate, Direction]] = {}
    for candidate, proposal in sorted(finite, key=lambda one: -(one[0].induce or 0.0)):
        if len(best) < BEST and proposal.layer not in best:
            best[proposal.layer] = candidate, direction_of(proposal, method, behaviour)
    return Inducing(best=tuple(best.values()), candidates=tuple(one for one, _ in judged))


def _candidate(scores: Scores, proposal: Proposal) -> Candidate:
    return Candidate(
        layer=proposal.layer,
        position=proposal.position,
        norm=proposal.norm,
        rank=len(proposal.basis),
        bypass=None,
        induce=mean(scores.induce),
        kl=None,
        discarded=None if scores.finite else "not finite",
    )


def passes(candidate: Candidate) -> bool:
    """Whether adding it makes the behaviour likelier than not, as the paper asks."""
    return candidate.induce is not None and candidate.induce >= MIN_INDUCE
