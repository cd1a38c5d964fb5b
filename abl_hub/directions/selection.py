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

import torch

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.direction import Direction
from abl_hub.directions.means import Means
from abl_hub.directions.proposal import Proposal
from abl_hub.errors import ContrastError
from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.stream import adding
from abl_hub.progress import SILENT, Progress

Ablation = Callable[[Proposal], AbstractContextManager[None]]
"""A proposal → a context in which the model runs without its directions."""

MAX_KL = 0.1
MIN_INDUCE = 0.0
MAX_DEPTH = 0.8
_FAR_LIKELIER = 0.02
_FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layer and position, judged on validation prompts.

    Args:
        layer: 0-based, the block whose output the vector was read from.
        position: counted from the prompt's end, -1 is its last token.
        norm: length of the vector, in units of the residual stream.
        rank: how many directions are removed together.
        bypass: mean log-odds of the behaviour's tokens on positive prompts, under ablation.
        induce: the same on negative prompts, under addition of the vector.
        kl: KL(base ‖ ablated) of the first token on negative prompts, nats.
        discarded: why the candidate is out; None if it is in.
    """

    layer: int
    position: int
    norm: float
    bypass: float
    induce: float
    kl: float
    discarded: str | None
    rank: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What one method offers.

    Args:
        direction: of the chosen candidate.
        proposal: what the method proposed there.
        chosen: the candidate.
        candidates: all of them.
        passed: False where no candidate met the thresholds, and the least harmful was taken.
    """

    direction: Direction
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
        negative_log_probs: (prompts, vocabulary), of the unedited model.
        filtered: whether prompts were left out so.
    """

    tokens: tuple[int, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    negative_log_probs: torch.Tensor
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
    """Log-odds that a reply opens with one of `tokens`: (prompts, vocabulary) → (prompts,)."""
    share = log_probs.double().exp()[:, list(tokens)].sum(-1)
    return (share + 1e-8).log() - (1 - share + 1e-8).log()


def validate(
    chat: ChatModel, contrast: Contrast, tokens: tuple[int, ...], *, rows: int = 32
) -> Validation:
    """Run the unedited model on the validation prompts and keep those that are typical."""
    positive, negative = contrast.positive.validation, contrast.negative.validation
    base_positive = next_token_log_probs(chat, positive, rows=rows)
    base_negative = next_token_log_probs(chat, negative, rows=rows)
    shows = (log_odds(base_positive, tokens) > 0).tolist()
    shows_not = (log_odds(base_negative, tokens) < 0).tolist()
    if sum(shows) < _FEWEST or sum(shows_not) < _FEWEST:
        return Validation(
            tokens=tokens,
            positive=positive,
            negative=negative,
            negative_log_probs=base_negative,
            filtered=False,
        )
    return Validation(
        tokens=tokens,
        positive=tuple(p for p, keep in zip(positive, shows, strict=True) if keep),
        negative=tuple(p for p, keep in zip(negative, shows_not, strict=True) if keep),
        negative_log_probs=base_negative[shows_not],
        filtered=True,
    )


def select(
    chat: ChatModel,
    proposals: Sequence[Proposal],
    validation: Validation,
    *,
    method: str,
    ablate: Ablation,
    behaviour: str = "refusal",
    rows: int = 32,
    progress: Progress = SILENT,
) -> Selection:
    """Judge the proposals of `method` and choose one.

    Raises:
        ContrastError: there is none: the two prompt sets leave the same activations.
    """
    # The paper reads block inputs: the output of block l is its layer l + 1.
    allowed = max(1, int(MAX_DEPTH * len(chat.layers)) - 1)
    judged: list[tuple[Candidate, Proposal]] = []
    tried = [proposal for proposal in proposals if proposal.layer < allowed]
    with progress.stage(f"Judging {method} candidates", len(tried)) as advance:
        for proposal in tried:
            judged.append((_judge(chat, validation, proposal, ablate, rows), proposal))
            advance(1)
    if not judged:
        raise ContrastError(
            "The two prompt sets leave the same activations",
            why=f"{method} found no direction between them",
            next_step="Check --positive and --negative",
        )
    candidates = tuple(candidate for candidate, _ in judged)
    kept = [candidate for candidate in candidates if candidate.discarded is None]
    chosen = min(kept or _least_harmful(candidates), key=lambda candidate: candidate.bypass)
    proposal = next(proposal for candidate, proposal in judged if candidate is chosen)
    return Selection(
        direction=Direction(
            vector=proposal.basis[0],
            layer=chosen.layer,
            position=chosen.position,
            norm=chosen.norm,
            method=method,
            behaviour=behaviour,
            further=proposal.basis[1:] if len(proposal.basis) > 1 else None,
            along=proposal.along,
        ),
        proposal=proposal,
        chosen=chosen,
        candidates=candidates,
        passed=bool(kept),
    )


def _least_harmful(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Where none meets all thresholds: those within the limit of KL, or else the lowest KL."""
    gentle = [candidate for candidate in candidates if candidate.kl <= MAX_KL]
    return gentle or [min(candidates, key=lambda candidate: candidate.kl)]


def _judge(
    chat: ChatModel,
    validation: Validation,
    proposal: Proposal,
    ablate: Ablation,
    rows: int,
) -> Candidate:
    with ablate(proposal):
        positive = next_token_log_probs(chat, validation.positive, rows=rows)
        negative = next_token_log_probs(chat, validation.negative, rows=rows)
    with adding(chat.layers, proposal.layer, proposal.addition):
        added = next_token_log_probs(chat, validation.negative, rows=rows)
    bypass = float(log_odds(positive, validation.tokens).mean())
    induce = float(log_odds(added, validation.tokens).mean())
    base = validation.negative_log_probs.double()
    kl = float((base.exp() * (base - negative.double())).sum(-1).mean())
    return Candidate(
        layer=proposal.layer,
        position=proposal.position,
        norm=proposal.norm,
        rank=len(proposal.basis),
        bypass=bypass,
        induce=induce,
        kl=kl,
        discarded=_discarded(bypass, induce, kl),
    )


def _discarded(bypass: float, induce: float, kl: float) -> str | None:
    if not all(map(math.isfinite, (bypass, induce, kl))):
        return "not finite"
    if kl > MAX_KL:
        return f"KL above {MAX_KL}"
    if induce < MIN_INDUCE:
        return f"induces less than {MIN_INDUCE:g}"
    return None
