"""How likely a model finds tokens that are given to it, in memory that replies do not drive.

A table of log-probabilities has a column for every word of the vocabulary: 16 replies of 512 tokens
are 5 GB at 150,000 words. So batches are made as large as `LOGIT_BYTES` allows, whoever asks for
what. Knows neither where the tokens come from nor what is made of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from abl_hub.model.batches import right_padded
from abl_hub.model.chat import ChatModel
from abl_hub.model.divergence import bounded, divergence

ROWS = 16
"""Most sequences a batch: beyond it small models gain nothing."""
LOGIT_BYTES = 2**29
"""Most of a batch's logits, rows × tokens × vocabulary, counted in float32: 16 replies of 64 tokens
at a vocabulary of 128k."""
_TABLES = 16
"""What is taken from them at once is so small a part: reading it needs several copies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Continuation:
    """Token ids and how many of them, from the end, are to be judged.

    Args:
        tokens: all of them, prompt first.
        judged: the last `judged` tokens are predicted and judged; fewer than there are.
    """

    tokens: tuple[int, ...]
    judged: int


def portions(
    chat: ChatModel, sequences: Sequence[Continuation], *, rows: int = ROWS
) -> Iterator[list[int]]:
    """Indices of `sequences`, shortest first: batches of `rows`, or of as many as fit the budget.

    A sequence that does not fit by itself is a batch nevertheless; `log_probs` cuts it.
    """
    most = _tokens_at_once(chat)
    chosen: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index].tokens)):
        wider = [*chosen, index]
        kept = _kept([sequences[one] for one in wider])
        if chosen and (len(wider) > rows or len(wider) * kept > most):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def together(chat: ChatModel, sequences: Sequence[Continuation]) -> torch.Tensor:
    """Log-probabilities of one batch, (all judged tokens, vocabulary) float32, with gradients."""
    logits, places = _logits(chat, sequences)
    row = torch.tensor([row for row, place in enumerate(places) for _ in place])
    token = torch.tensor([token for place in places for token in place])
    # All at once: a slice for each sequence would have gradients of the whole table each.
    found = logits[row.to(logits.device), token.to(logits.device)]
    return found.float().log_softmax(-1)


@torch.no_grad()
def narrow_tables(
    chat: ChatModel, sequences: Sequence[Continuation], *, rows: int = ROWS
) -> list[torch.Tensor]:
    """Log-probabilities of each sequence, (judged, vocabulary) float16: to be kept, so not many."""
    found: dict[int, torch.Tensor] = {}
    for chosen in portions(chat, sequences, rows=rows):
        part = [sequences[index] for index in chosen]
        table = bounded(together(chat, part)).half()
        found |= zip(chosen, torch.split(table, [one.judged for one in part]), strict=True)
    return [found[index] for index in range(len(sequences))]


def summed_means(values: torch.Tensor, sequences: Sequence[Continuation]) -> torch.Tensor:
    """Of a value for each judged token, one sequence after the other: the sum of their means."""
    each = torch.split(values, [one.judged for one in sequences])
    return torch.stack([one.mean() for one in each]).sum()


@torch.inference_mode()
def log_probs(
    chat: ChatModel, sequences: Sequence[Continuation], *, rows: int = ROWS
) -> Iterator[tuple[int, torch.Tensor]]:
    """Teacher-forced log-probabilities: pairs (index, (tokens, vocabulary) float32).

    The tables of a long sequence come one after the other; memory is bounded for whoever keeps
    none. The order is the same for any two models with the same vocabulary and `sequences`.
    Rounding depends on the company in a batch, far below what likelihoods are compared at. A model
    that takes no `logits_to_keep` computes logits of prompts too, beyond the budget.
    """
    most = _tokens_at_once(chat)
    pieces = [(index, piece) for index, one in enumerate(sequences) for piece in _pieces(one, most)]
    for chosen in portions(chat, [piece for _, piece in pieces], rows=rows):
        logits, places = _logits(chat, [pieces[place][1] for place in chosen])
        for row, (place, tokens) in enumerate(zip(chosen, places, strict=True)):
            judged = logits[row, tokens.start : tokens.stop]
            for part in torch.split(judged, max(1, most // _TABLES)):
                yield pieces[place][0], part.float().log_softmax(-1)
        del logits, judged, part  # or they would be there beside the next ones


def token_log_probs(chat: ChatModel, sequences: Sequence[Continuation]) -> list[torch.Tensor]:
    """Log-probabilities of each sequence's judged tokens themselves, (judged,) float32, CPU."""
    # Numbers, not tensors: on the heap these would keep the gaps that freed tables leave apart.
    found: list[list[float]] = [[] for _ in sequences]
    for index, table in log_probs(chat, sequences):
        one = sequences[index]
        first = len(one.tokens) - one.judged + len(found[index])
        tokens = torch.tensor(one.tokens[first : first + len(table)], device=table.device)
        found[index] += table.gather(1, tokens[:, None])[:, 0].tolist()
    return [torch.tensor(one) for one in found]


def divergences(
    before: Iterable[torch.Tensor], chat: ChatModel, sequences: Sequence[Continuation]
) -> list[torch.Tensor]:
    """KL(before ‖ `chat`) of each sequence, (judged,) float64, nats, CPU.

    Args:
        before: another model's tables of the same sequences, as `log_probs` gives them, CPU.
    """
    nats: list[list[float]] = [[] for _ in sequences]
    for one, (index, other) in zip(before, log_probs(chat, sequences), strict=True):
        nats[index] += divergence(one.double(), other.cpu().double()).tolist()
    return [torch.tensor(one, dtype=torch.float64) for one in nats]


def _tokens_at_once(chat: ChatModel) -> int:
    """How many tokens' logits fit the budget, those of all rows together."""
    vocabulary = int(chat.model.config.get_text_config().vocab_size)
    return max(1, LOGIT_BYTES // (torch.float32.itemsize * vocabulary))


def _kept(sequences: Sequence[Continuation]) -> int:
    """Tokens from the first to the last whose logits any of them needs: one before each judged."""
    first = min(len(one.tokens) - one.judged for one in sequences)
    return max(len(one.tokens) for one in sequences) - first


def _pieces(sequence: Continuation, most: int) -> Iterator[Continuation]:
    """Beginnings of it, of at most `most` judged tokens each: those that the last one left.

    What comes before them runs again; what comes after does not change them.
    """
    prompt = len(sequence.tokens) - sequence.judged
    for first in range(0, sequence.judged, most):
        end = min(first + most, sequence.judged)
        yield Continuation(tokens=sequence.tokens[: prompt + end], judged=end - first)


def _logits(chat: ChatModel, sequences: Sequence[Continuation]) -> tuple[torch.Tensor, list[range]]:
    """Logits (rows, kept, vocabulary), and which of each row's predict its judged tokens."""
    # Nothing follows a last token that would have to be predicted.
    tokens = right_padded([one.tokens[:-1] for one in sequences], device=chat.device)
    kept = _kept(sequences)
    logits = chat.model(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits[:, -kept:]
    start = tokens.shape[1] - kept
    ends = [len(one.tokens) - 1 - start for one in sequences]
    return logits, [range(end - one.judged, end) for end, one in zip(ends, sequences, strict=True)]
