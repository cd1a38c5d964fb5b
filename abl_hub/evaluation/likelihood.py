"""KL divergence over whole replies, and perplexity on neutral text.

KL of the first token alone calls a model excellent whose every reply is gibberish; so it is taken
over the unedited model's own greedy reply, token by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from abl_hub.evaluation.intervals import Estimate, mean
from abl_hub.evaluation.subject import Subject
from abl_hub.model.batches import by_length
from abl_hub.model.divergence import divergence
from abl_hub.model.generate import Continuation, Reply, continuations, log_probs

_NEUTRAL = Path(__file__).with_name("neutral.txt")
_FEWEST_ROWS, _MOST_ROWS = 2, 32
_ROWS_TIMES_VOCABULARY = 4 * 131072


def kl_over_replies(
    base: Subject,
    edited: Subject,
    prompts: Sequence[str],
    base_replies: Sequence[Reply],
    *,
    tokens: int,
) -> Estimate:
    """KL(base ‖ edited) over the first `tokens` tokens of the base's own replies.

    Nats a token: the mean over each reply's tokens, then over prompts, with its 95% interval.
    """
    sequences = continuations(base.chat, prompts, base_replies, limit=tokens)
    values: list[float] = []
    rows = _rows(base)
    for chosen in by_length([one.tokens for one in sequences], rows=rows):
        # A few sequences at a time, so that two vocabularies of log-probabilities stay small.
        part = [sequences[index] for index in chosen]
        with base.active():
            before = {index: table.cpu() for index, table in log_probs(base.chat, part, rows=rows)}
        with edited.active():
            for index, after in log_probs(edited.chat, part, rows=rows):
                apart = divergence(before[index].double(), after.cpu().double())
                values.append(float(apart.mean().clamp_min(0.0)))
    return mean(values)


def _rows(subject: Subject) -> int:
    """Sequences at a time: 4 at a vocabulary of 128k, more of a smaller one."""
    vocabulary = int(subject.chat.model.config.get_text_config().vocab_size)
    return max(_FEWEST_ROWS, min(_MOST_ROWS, _ROWS_TIMES_VOCABULARY // vocabulary))


def neutral_texts() -> tuple[str, ...]:
    """Paragraphs about nothing in particular, written for this purpose."""
    return tuple(p.strip() for p in _NEUTRAL.read_text(encoding="utf-8").split("\n\n") if p.strip())


def perplexity(subject: Subject, texts: Sequence[str]) -> Estimate:
    """Perplexity on `texts`: exp of the mean loss a token; the interval is over texts."""
    sequences = []
    for text in texts:
        ids = subject.chat.tokenizer(text)["input_ids"][: _window(subject)]
        sequences.append(Continuation(tokens=tuple(ids), judged=len(ids) - 1))
    losses: list[float] = []
    weights: list[int] = []
    with subject.active():
        for index, table in log_probs(subject.chat, sequences, rows=_rows(subject)):
            tokens = torch.tensor(sequences[index].tokens[1:], device=table.device)
            losses.append(float(-table.gather(1, tokens[:, None]).mean()))
            weights.append(len(tokens))
    spread = mean(losses)
    centre = math.fsum(x * w for x, w in zip(losses, weights, strict=True)) / sum(weights)
    shift = centre - spread.value
    return Estimate(
        value=math.exp(min(centre, 700.0)),
        low=math.exp(min(spread.low + shift, 700.0)),
        high=math.exp(min(spread.high + shift, 700.0)),
        count=sum(weights),
    )


def _window(subject: Subject) -> int:
    config = subject.chat.model.config.get_text_config()
    return min(512, int(getattr(config, "max_position_embeddings", None) or 512))
