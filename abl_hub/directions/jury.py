"""The paper's three scores of a proposal, round by round of the validation prompts.

Knows scores of proposals; not how they came about, nor what is chosen by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from abl_hub.directions.proposal import Proposal
from abl_hub.directions.rounds import Side
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import divergence
from abl_hub.model.prefix import exact, last_logits
from abl_hub.model.restart import RestartedPass
from abl_hub.model.stream import adding

_TOGETHER = 8


@dataclass(kw_only=True)
class Scores:
    """One proposal's scores so far, a number for each prompt that it was judged on.

    Args:
        induce: log-odds of the behaviour on negative prompts, under addition.
        kl: KL(base ‖ ablated) of the first token on negative prompts, nats.
        bypass: log-odds of the behaviour on positive prompts, under ablation.
        out: why it is out; None while it is in.
        beaten_by: the leader that it lost to.
    """

    proposal: Proposal
    induce: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    bypass: list[float] = field(default_factory=list)
    out: str | None = None
    beaten_by: Scores | None = None

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (*self.induce, *self.kl, *self.bypass)))


class Jury:
    """The validation prompts, ready to judge proposals.

    Args:
        log_odds: (prompts, vocabulary) log-probabilities → (prompts,).
        ablate: the edit to judge under.
    """

    def __init__(
        self,
        chat: ChatModel,
        positive: Side,
        negative: Side,
        *,
        log_odds: Callable[[torch.Tensor], torch.Tensor],
        ablate: Callable[[Proposal], AbstractContextManager[None]],
    ) -> None:
        self.chat = chat
        self.log_odds = log_odds
        self.ablate = ablate
        self.positive = positive
        self.negative = negative
        first, middle = negative.rounds[0][0], len(chat.layers) // 2
        self.restarts = first.exact(0) and first.exact(middle)
        self.prefix = min(positive.prefix, negative.prefix)
        if not exact(chat, first, self.prefix):
            self.prefix = 0
        # Scores of the unedited model on the negative prompts, in the rounds' order.
        self.unedited: list[float] = [
            score
            for batches in negative.rounds
            for batch in batches
            for score in log_odds(batch.base[0].log_softmax(-1).cpu()).tolist()
        ]

    @property
    def rounds(self) -> int:
        return max(len(self.positive.rounds), len(self.negative.rounds))

    def before(self, name: str, number: int) -> int:
        """Prompts that the score `name` has been taken on before round `number`."""
        side = self.positive if name == "bypass" else self.negative
        return sum(len(batch.last) for batches in side.rounds[:number] for batch in batches)

    def complete(self, scores: Scores) -> bool:
        """Whether `scores` come from all prompts."""
        wanted = self.before("kl", self.rounds), self.before("bypass", self.rounds)
        return (len(scores.kl), len(scores.bypass)) == wanted

    def induce(self, layer: int, vectors: torch.Tensor, number: int) -> list[list[float]]:
        """Scores of round `number` with each of `vectors` (n, width) added behind `layer`."""
        found: list[list[float]] = [[] for _ in vectors]
        for batch in _round(self.negative, number):
            for scores, logits in zip(found, self._added(batch, layer, vectors), strict=True):
                scores += self.log_odds(logits.log_softmax(-1).cpu()).tolist()
        return found

    def _added(self, batch: RestartedPass, layer: int, vectors: torch.Tensor) -> torch.Tensor:
        """(n, prompts, vocabulary), as many additions at once as may be."""
        if self.restarts:
            return torch.cat([batch.added(layer, part) for part in torch.split(vectors, _TOGETHER)])
        each = []
        for vector in vectors:
            with adding(self.chat.layers, layer, vector):
                each.append(batch.last_logits())
        return torch.stack(each)

    def kl(self, proposal: Proposal, number: int) -> list[float]:
        """KL(base ‖ ablated) of round `number`."""
        found = []
        with self.ablate(proposal):
            for batch in _round(self.negative, number):
                before = batch.base[0].cpu().double().log_softmax(-1)
                after = last_logits(self.chat, batch, self.prefix).cpu().double().log_softmax(-1)
                found += divergence(before, after).tolist()
        return found

    def bypass(self, proposal: Proposal, number: int) -> list[float]:
        """Scores of round `number` under ablation."""
        found = []
        with self.ablate(proposal):
            for batch in _round(self.positive, number):
                found += self.log_odds(
                    last_logits(self.chat, batch, self.prefix).log_softmax(-1).cpu()
                ).tolist()
        return found


def _round(side: Side, number: int) -> tuple[RestartedPass, ...]:
    return side.rounds[number] if number < len(side.rounds) else ()
