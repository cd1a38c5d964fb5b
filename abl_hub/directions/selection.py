"""The candidate that mediates the behaviour, by the paper's rule (Arditi et al. 2024, section 2.3).

Of the candidates of all layers and post-instruction positions, those are discarded that change
answered prompts (KL), that do not induce the behaviour when added, or that lie too close to the
output; of the rest, the one wins whose removal leaves the least of the behaviour.

Knows how to judge a candidate by the first token of the reply; is given the ablation to judge it
under, so that what is judged is the edit that will be written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.direction import Direction
from abl_hub.directions.jury import Jury, Scores
from abl_hub.directions.means import Means
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.race import BEATEN, Thresholds, finish, mean, race
from abl_hub.directions.rounds import Side, side
from abl_hub.errors import ContrastError
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import bounded
from abl_hub.model.packed import packs
from abl_hub.progress import SILENT, Progress

Ablation = Callable[[Proposal], AbstractContextManager[None]]
"""A proposal → a context in which the model runs without its directions."""

MAX_KL = 0.1
MIN_INDUCE = 0.0
MAX_DEPTH = 0.8
DEEPER = (0.65, 0.85)
_FAR_LIKELIER = 0.02
_FEWEST = 4
_CERTAIN = 100.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layer and position, judged on validation prompts.

    Args:
        layer: 0-based, the block whose output the vector was read from.
        position: counted from the prompt's end, -1 is its last token.
        norm: length of the vector, in units of the residual stream.
        rank: how many directions are removed together.
        bypass: mean log-odds of the behaviour's tokens on positive prompts, under ablation; None
            where another score had settled it.
        induce: the same on negative prompts, under addition of the vector.
        kl: KL(base ‖ ablated) of the first token on negative prompts, nats; None likewise.
        discarded: why the candidate is out; None if it is in.
        prompts: on how many prompts a side it was judged before it was out; None is all.
    """

    layer: int
    position: int
    norm: float
    bypass: float | None
    induce: float | None
    kl: float | None
    discarded: str | None
    rank: int = 1
    prompts: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What one method offers.

    Args:
        direction: of the chosen candidate.
        alternatives: directions of the same kind with which one strength for all writers does
            badly, and fitted strengths may do better: some nearer to the output. Where no candidate
            met all thresholds they are those at the prompt's last token, if the method reads there,
            and the candidate that removes most of the behaviour (on the prompts that it was judged
            on until it was out) is one too, whatever its KL.
        proposal: what the method proposed there.
        chosen: the candidate.
        candidates: all of them.
        passed: False where no candidate met all thresholds: then the best within the limit of KL
            was taken, or else the one of lowest KL.
    """

    direction: Direction
    alternatives: tuple[Direction, ...]
    proposal: Proposal
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    passed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What the unedited model does on the validation prompts.

    Args:
        tokens: ids that open a reply which shows the behaviour.
        positive: prompts that are judged; those that show it (log-odds > 0), if there are enough.
        negative: likewise, those that do not.
        sides: both, ready to judge proposals on.
        filtered: whether prompts were left out so.
    """

    tokens: tuple[int, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    sides: tuple[Side, Side]
    filtered: bool


def behaviour_tokens(means: Means) -> tuple[int, ...]:
    """First tokens that are far likelier on positive than on negative prompts, likeliest first.

    Found from the model itself; the paper lists them by hand for each family.

    Raises:
        ContrastError: the model opens its replies to both sides alike.
    """
    difference = means.positive.first_token - means.negative.first_token
    order = difference.argsort(descending=True)
    far = [int(token) for token in order[:64] if float(difference[token]) > _FAR_LIKELIER]
    if not far and float(difference[order[0]]) <= 0:
        raise ContrastError(
            "The model opens its replies to both prompt sets alike",
            why="no first token is likelier on one side, so there is no behaviour to find",
            next_step="Check --positive and --negative",
        )
    return tuple(far) or (int(order[0]),)


def log_odds(log_probs: torch.Tensor, tokens: tuple[int, ...]) -> torch.Tensor:
    """Log-odds that a reply opens with one of `tokens`: (prompts, vocabulary) → (prompts,).

    float64, within ±100. Both shares are summed: one minus a share near 1 is rounding.
    """
    exact = bounded(log_probs.double())
    shown = torch.zeros(exact.shape[-1], dtype=torch.bool, device=exact.device)
    shown[list(tokens)] = True
    odds = exact[:, shown].logsumexp(-1) - exact[:, ~shown].logsumexp(-1)
    return odds.clamp(-_CERTAIN, _CERTAIN)


def validate(
    chat: ChatModel, contrast: Contrast, tokens: tuple[int, ...], *, rows: int = 32
) -> Validation:
    """Run the unedited model on the validation prompts and keep those that are typical."""
    positive, negative = contrast.positive.validation, contrast.negative.validation
    together = packs(chat, [chat.prompt_tokens(prompt) for prompt in (*positive, *negative)])
    showing, other = (
        side(chat, prompts, rows=rows, packs=together) for prompts in (positive, negative)
    )
    shows = (log_odds(showing.log_probs, tokens) > 0).tolist()
    shows_not = (log_odds(other.log_probs, tokens) < 0).tolist()
    filtered = sum(shows) >= _FEWEST and sum(shows_not) >= _FEWEST
    if filtered:
        positive = tuple(p for p, keep in zip(positive, shows, strict=True) if keep)
        negative = tuple(p for p, keep in zip(negative, shows_not, strict=True) if keep)
        showing, other = showing.only(shows), other.only(shows_not)
    return Validation(
        tokens=tokens,
        positive=positive,
        negative=negative,
        sides=(showing, other),
        filtered=filtered,
    )


def select(
    chat: ChatModel,
    proposals: Sequence[Proposal],
    validation: Validation,
    *,
    method: str,
    ablate: Ablation,
    behaviour: str = "refusal",
    progress: Progress = SILENT,
) -> Selection:
    """Judge the proposals of `method` and choose one.

    Raises:
        ContrastError: there is none: the two prompt sets leave the same activations.
    """
    below = allowed_layers(len(chat.layers))
    tried = [proposal for proposal in proposals if proposal.layer < below]
    if not tried:
        raise ContrastError(
            "The two prompt sets leave the same activations",
            why=f"{method} found no direction between them",
            next_step="Check --positive and --negative",
        )
    jury = Jury(
        chat,
        *validation.sides,
        log_odds=partial(log_odds, tokens=validation.tokens),
        ablate=ablate,
    )
    with progress.stage(f"Judging {len(tried)} {method} candidates", jury.rounds) as advance:
        judged, winner, passed = _raced(jury, tried, lambda _number: advance(1))
    candidates = tuple(_candidate(scores, jury) for scores in judged)
    chosen = candidates[judged.index(winner)]
    proposal = winner.proposal
    direction = direction_of(proposal, method, behaviour)
    reads_last = any(one.position == -1 for one in proposals)
    position = -1 if reads_last and not passed else proposal.position
    wanted = _deeper(proposals, proposal, len(chat.layers), position)
    if not passed:
        strongest = _removing_most(judged)
        wanted += [strongest] if strongest not in (proposal, *wanted) else []
    return Selection(
        direction=direction,
        alternatives=tuple(direction_of(other, method, behaviour) for other in wanted),
        proposal=proposal,
        chosen=chosen,
        candidates=candidates,
        passed=passed,
    )


def allowed_layers(count: int) -> int:
    """Layers below this are far enough from the output, of `count`."""
    # The paper reads block inputs: the output of block l is its layer l + 1.
    return max(1, int(MAX_DEPTH * count) - 1)


def direction_of(proposal: Proposal, method: str, behaviour: str) -> Direction:
    """What is kept of a proposal of `method` that was chosen."""
    return Direction(
        vector=proposal.basis[0],
        layer=proposal.layer,
        position=proposal.position,
        norm=proposal.norm,
        method=method,
        behaviour=behaviour,
        further=proposal.basis[1:] if len(proposal.basis) > 1 else None,
        along=proposal.along,
    )


def _deeper(
    proposals: Sequence[Proposal], chosen: Proposal, layers: int, position: int
) -> list[Proposal]:
    """What the same method found at two thirds and five sixths of the depth, if it did."""
    wanted = {round(share * (layers - 1)) for share in DEEPER}
    return [
        proposal
        for proposal in proposals
        if proposal.layer in wanted
        and proposal.position == position
        and (proposal.layer, proposal.position) != (chosen.layer, chosen.position)
        and len(proposal.basis) == len(chosen.basis)
    ]


def _removing_most(judged: Sequence[Scores]) -> Proposal:
    """The candidate of the lowest bypass, on what prompts it was judged on until it was out."""
    known = [scores for scores in judged if scores.bypass and scores.finite]
    return min(known, key=lambda scores: mean(scores.bypass)).proposal


def _raced(
    jury: Jury, tried: Sequence[Proposal], on_round: Callable[[int], None]
) -> tuple[list[Scores], Scores, bool]:
    """All scores, the winner's, and whether it meets the thresholds.

    Where none meets all: those within the limit of KL, or else the lowest KL.
    """
    field = [Scores(proposal=proposal) for proposal in tried]
    for induce in (MIN_INDUCE, -math.inf):
        limits = Thresholds(kl=MAX_KL, induce=induce)
        race(jury, field, limits, on_round=on_round)
        passing = [scores for scores in field if scores.out is None and limits.met_by(scores)]
        if passing:
            winner = min(passing, key=lambda scores: mean(scores.bypass))
            finish(jury, winner)
            return field, winner, induce == MIN_INDUCE
    for scores in field:
        finish(jury, scores)
    usable = [scores for scores in field if scores.finite]
    if not usable:
        raise ContrastError(
            "No candidate leaves the model's outputs finite",
            next_step="Try --dtype float32 or bfloat16",
        )
    return field, min(usable, key=lambda scores: mean(scores.kl)), False


def _candidate(scores: Scores, jury: Jury) -> Candidate:
    bypass, induce, kl = (
        mean(values) if values else None for values in (scores.bypass, scores.induce, scores.kl)
    )
    proposal = scores.proposal
    judged_on_all = jury.complete(scores)
    return Candidate(
        layer=proposal.layer,
        position=proposal.position,
        norm=proposal.norm,
        rank=len(proposal.basis),
        bypass=bypass,
        induce=induce,
        kl=kl,
        discarded=_discarded(bypass, induce, kl, scores),
        prompts=None if judged_on_all else max(len(scores.induce), len(scores.bypass)),
    )


def _discarded(
    bypass: float | None, induce: float | None, kl: float | None, scores: Scores
) -> str | None:
    if not scores.finite:
        return "not finite"
    if kl is not None and kl > MAX_KL:
        return f"KL above {MAX_KL}"
    if induce is not None and induce < MIN_INDUCE:
        return f"induces less than {MIN_INDUCE:g}"
    return "removes less than another" if scores.out == BEATEN and bypass is not None else None
