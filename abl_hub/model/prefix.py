"""What all prompts begin with (the template's opening, a system prompt), computed once a batch.

Exact for models whose cache can be repeated over rows; `exact` tells, by trying.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from abl_hub.model.chat import ChatModel
from abl_hub.model.restart import TOLERANCE, RestartedPass


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all `sequences` begin with; at least one token of each is left."""
    shortest = min(sequences, key=len)
    length = 0
    while length < len(shortest) - 1 and all(one[length] == shortest[length] for one in sequences):
        length += 1
    return length


@torch.inference_mode()
def last_logits(chat: ChatModel, batch: RestartedPass, prefix: int) -> torch.Tensor:
    """Like `batch.last_logits()`, the first `prefix` tokens run as one row, (rows, vocabulary)."""
    if prefix == 0:
        return batch.last_logits()
    begun = chat.model(input_ids=batch.tokens[:1, :prefix], use_cache=True, logits_to_keep=1)
    cache = begun.past_key_values
    cache.batch_repeat_interleave(len(batch.tokens))
    start = int(batch.last.min())
    kept = batch.tokens.shape[1] - start
    logits = chat.model(
        input_ids=batch.tokens[:, prefix:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=kept,
    ).logits[:, -kept:]
    rows = torch.arange(len(batch.last), device=logits.device)
    found: torch.Tensor = logits[rows, (batch.last - start).to(logits.device)].float()
    return found


def exact(chat: ChatModel, batch: RestartedPass, prefix: int) -> bool:
    """Whether the shortcut changes nothing in this model."""
    if prefix == 0 or not _repeats(chat, batch.tokens[:1, :prefix]):
        return prefix == 0
    logits, _ = batch.base
    again = last_logits(chat, batch, prefix)
    scale = max(1.0, float(logits.abs().max()))
    return float((again - logits).abs().max()) <= TOLERANCE * scale


@torch.inference_mode()
def _repeats(chat: ChatModel, tokens: torch.Tensor) -> bool:
    """Whether the model keeps keys and values alone: states of other kinds are not repeated."""
    output = chat.model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    cache = getattr(output, "past_key_values", None)
    return isinstance(cache, DynamicCache) and all(
        isinstance(layer, DynamicLayer) for layer in cache.layers
    )
