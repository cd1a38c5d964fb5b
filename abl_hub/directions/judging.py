"""Candidates judged on growing parts of the validation prompts, and dropped as soon as it is clear.

Every candidate begins with a few prompts. It is out when a one-sided 99% bound says that it misses
a threshold, or that its bypass score is above the leader's (paired, on the same prompts). The
bounds are of the mean over all validation prompts, which are finitely many: they close as the
prompts run out. The winner has been judged on all of them, with the numbers of the plain loop.

Knows scores of proposals; not how they came about, nor what is chosen by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from abl_hub.directions.proposal import Proposal
from abl_hub.model.batches import by_length, right_padded
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import divergence
from abl_hub.model.packed import by_prefix, packed
from abl_hub.model.prefix import exact, last_logits, shared_prefix
from abl_hub.model.restart import RestartedPass
from abl_hub.model.stream import adding

_FIRST_ROUND = 4
_TOGETHER = 8
# Few, so that little of a batch is filling.
_ROWS = 8
# Student's t, one-sided 99%, by degrees of freedom; the normal quantile beyond.
_T99 = {1: 31.82, 2: 6.965, 3: 4.541, 4: 3.747, 5: 3.365, 7: 2.998, 10: 2.764, 15: 2.602}
_Z99 = 2.5


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
    """Above `kl` or below `induce` a candidate is out."""

    kl: float
    induce: float

    def met_by(self, scores: Scores) -> bool:
        """Whether the means so far meet them."""
        return mean(scores.kl) <= self.kl and mean(scores.induce) >= self.induce


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One side's prompts in rounds of batches that the unedited model has run.

    Args:
        rounds: of 4, 4, 8, 16 … prompts, each in batches of like length.
        order: which prompt each row of the batches is.
        prefix: how many tokens all of them begin with; 0 where packs share what they can.
    """

    rounds: tuple[tuple[RestartedPass, ...], ...]
    order: tuple[int, ...]
    prefix: int

    @property
    def log_probs(self) -> torch.Tensor:
        """Of the unedited model's first tokens, (prompts, vocabulary) float32, CPU, in order."""
        found = torch.cat([batch.base[0].cpu() for batches in self.rounds for batch in batches])
        back = torch.tensor(self.order).argsort()
        return found.log_softmax(-1)[back]

    def only(self, kept: Sequence[bool]) -> Side:
        """The side without the prompts that are not `kept`."""
        rounds, start = [], 0
        for batches in self.rounds:
            rest = []
            for batch in batches:
                here = self.order[start : start + len(batch.last)]
                start += len(here)
                rows = [row for row, prompt in enumerate(here) if kept[prompt]]
                if rows:
                    rest.append(batch.rows(rows))
            if rest:
                rounds.append(tuple(rest))
        renumbered = {old: new for new, old in enumerate(i for i, k in enumerate(kept) if k)}
        order = tuple(renumbered[prompt] for prompt in self.order if kept[prompt])
        return Side(rounds=tuple(rounds), order=order, prefix=self.prefix)


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


def race(
    jury: Jury,
    field_: Sequence[Scores],
    thresholds: Thresholds,
    *,
    on_round: Callable[[int], None] = lambda _number: None,
) -> None:
    """Judge all of `field_` round by round; most are out after a few prompts.

    Who is in at the end has been judged on all prompts (on induce only where there is a threshold
    for it), and no other would beat it. Scores of an earlier race are used again.
    """
    for scores in field_:
        scores.out = scores.beaten_by = None
    while True:
        for number in range(jury.rounds):
            _play(jury, field_, number, thresholds)
            on_round(number)
        if not _wronged(field_):
            return


def _wronged(field_: Sequence[Scores]) -> list[Scores]:
    """Those that were beaten by one which has missed a threshold since."""
    return [
        scores
        for scores in field_
        if scores.out == BEATEN and scores.beaten_by is not None and scores.beaten_by.out == MISSED
    ]


def finish(jury: Jury, scores: Scores) -> None:
    """Judge one on all the prompts that it has not seen."""
    judge_additions(jury, [scores], jury.rounds - 1)
    for name in ("kl", "bypass"):
        _catch_up(jury, scores, name, jury.rounds - 1)


BEATEN = "beaten"
MISSED = "missed"


def _play(jury: Jury, field_: Sequence[Scores], number: int, thresholds: Thresholds) -> None:
    """One round: the cheapest score first, KL only of those that may lead."""
    for scores in _wronged(field_):
        scores.out = scores.beaten_by = None
    if thresholds.induce > -math.inf:
        judge_additions(jury, _inside(field_), number)
        for scores in _inside(field_):
            if not scores.finite or _at_most(jury, scores) < thresholds.induce:
                scores.out = MISSED
    for scores in _inside(field_):
        _catch_up(jury, scores, "bypass", number)
        if not scores.finite:
            scores.out = MISSED
    order = iter(sorted(_inside(field_), key=lambda scores: mean(scores.bypass)))
    leader = next(
        (
            scores
            for scores in order
            if _within_kl(jury, scores, number, thresholds) and thresholds.met_by(scores)
        ),
        None,
    )
    if leader is None:
        return
    total = jury.before("bypass", jury.rounds)
    for scores in order:
        apart = [one - other for one, other in zip(scores.bypass, leader.bypass, strict=False)]
        # In the end who is behind the leader is beaten, those who are level with it too.
        if len(apart) == total or mean(apart) - _half(apart, total) > 0:
            scores.out, scores.beaten_by = BEATEN, leader


def _within_kl(jury: Jury, scores: Scores, number: int, thresholds: Thresholds) -> bool:
    """Judge KL up to this round; out if it is clearly too large, or a number is not finite."""
    _catch_up(jury, scores, "kl", number)
    if not scores.finite:
        scores.out = MISSED
        return False
    total = jury.before("kl", jury.rounds)
    # KL is never negative, so that what has been seen is a bound by itself.
    certain = math.fsum(scores.kl) / total
    if max(mean(scores.kl) - _half(scores.kl, total), certain) > thresholds.kl:
        scores.out = MISSED
    return scores.out is None


def _at_most(jury: Jury, scores: Scores) -> float:
    """Upper bound of the mean induce score.

    The unedited model's score is known for every prompt, so only what the addition changes is
    estimated (the difference estimator of survey sampling): it varies far less between prompts.
    """
    changes = [one - base for one, base in zip(scores.induce, jury.unedited, strict=False)]
    return mean(jury.unedited) + mean(changes) + _half(changes, len(jury.unedited))


def _catch_up(jury: Jury, scores: Scores, name: str, number: int) -> None:
    """Judge one score on every round up to `number` that it has not seen."""
    seen: list[float] = getattr(scores, name)
    for earlier in range(number + 1):
        if len(seen) <= jury.before(name, earlier):
            seen += getattr(jury, name)(scores.proposal, earlier)


def judge_additions(jury: Jury, field_: Sequence[Scores], number: int) -> None:
    """Judge additions on every round up to `number` that they have not seen, a layer at a time."""
    for earlier in range(number + 1):
        by_layer: dict[int, list[Scores]] = {}
        for scores in field_:
            if len(scores.induce) <= jury.before("induce", earlier):
                by_layer.setdefault(scores.proposal.layer, []).append(scores)
        for layer, together in by_layer.items():
            vectors = torch.stack([scores.proposal.addition for scores in together])
            for scores, found in zip(together, jury.induce(layer, vectors, earlier), strict=True):
                scores.induce += found


def _inside(field_: Sequence[Scores]) -> list[Scores]:
    return [scores for scores in field_ if scores.out is None]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one number."""
    return math.fsum(values) / len(values)


def _half(values: Sequence[float], total: int) -> float:
    """Half of the interval around the mean of `total` prompts, of which `values` are known."""
    count = len(values)
    if count == total:
        return 0.0
    if count < 2:
        return math.inf
    centre = mean(values)
    variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
    known = [freedom for freedom in _T99 if freedom <= count - 1]
    quantile = _T99[max(known)] if count - 1 <= max(_T99) else _Z99
    return quantile * math.sqrt(variance / count * (1 - count / total))


def _round(side: Side, number: int) -> tuple[RestartedPass, ...]:
    return side.rounds[number] if number < len(side.rounds) else ()


def side(chat: ChatModel, prompts: Sequence[str], *, rows: int, packs: bool = False) -> Side:
    """Arrange one side's prompts; the unedited model runs on them when it is asked for.

    Args:
        packs: whether prompts may share a row (`abl_hub.model.packed.packs`).
    """
    sequences = [chat.prompt_tokens(prompt) for prompt in prompts]
    rounds = []
    order: list[int] = []
    start, size = 0, _FIRST_ROUND
    while start < len(sequences):
        part = sequences[start : start + size]
        batches = []
        grouped = by_prefix(part, rows=rows) if packs else by_length(part, rows=min(rows, _ROWS))
        for indices in grouped:
            chosen = [part[index] for index in indices]
            batches.append(packed(chat, chosen) if packs else _filled(chat, chosen))
            order += [start + index for index in indices]
        rounds.append(tuple(batches))
        start, size = start + size, max(_FIRST_ROUND, start + size)
    prefix = 0 if packs else shared_prefix(sequences)
    return Side(rounds=tuple(rounds), order=tuple(order), prefix=prefix)


def _filled(chat: ChatModel, sequences: Sequence[Sequence[int]]) -> RestartedPass:
    last = torch.tensor([len(one) - 1 for one in sequences], device=chat.device)
    return RestartedPass(chat, right_padded(sequences, device=chat.device), last)
