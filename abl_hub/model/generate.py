"""What a model says: greedy replies, and log-probabilities of their first token.

Every call takes prompts as text and is exact under batching. Nothing that is generated leaves
memory here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from abl_hub.model.batches import Batch, equal_length_batches
from abl_hub.model.chat import ChatModel
from abl_hub.model.teacher_forcing import ROWS, Continuation, log_probs


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One greedy reply.

    Args:
        tokens: what was generated, the token that ended it included.
        text: the same as text, without special tokens.
        ended: whether the model ended it, rather than the limit.
    """

    tokens: tuple[int, ...]
    text: str
    ended: bool


def greedy_replies(
    chat: ChatModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    rows: int = 32,
    drafts: Sequence[Reply] | None = None,
) -> list[Reply]:
    """Greedy replies to single-turn prompts, in their order.

    Args:
        drafts: a guess for each, such as the replies of a similar model. One forward pass confirms
            the guesses that are right to the last token; only the others are generated. What is
            returned is the same, up to rounding where two tokens are all but equally likely.
    """
    found = dict(_confirmed(chat, prompts, drafts or (), max_new_tokens=max_new_tokens, rows=rows))
    left = [index for index in range(len(prompts)) if index not in found]
    wanted = [prompts[index] for index in left]
    generated = _generated(chat, wanted, max_new_tokens=max_new_tokens, rows=rows)
    found |= dict(zip(left, generated, strict=True))
    return [found[index] for index in range(len(prompts))]


@torch.inference_mode()
def greedy(chat: ChatModel, batch: Batch, *, max_new_tokens: int) -> list[list[int]]:
    """The likeliest token after every row, then after that …; rows that ended are filled up.

    What the checkpoint asks for beyond that (penalties, suppressed tokens, least lengths) is left
    out: an edit is judged by what it makes likeliest, and that is what a forward pass tells, too.
    """
    stops = sorted(chat.stop_tokens)
    padding = chat.tokenizer.pad_token_id
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=padding if padding is not None else (stops[0] if stops else 0),
    )
    with _without_own_settings(chat.model):
        output = chat.model.generate(
            input_ids=batch.tokens,
            attention_mask=torch.ones_like(batch.tokens),
            generation_config=config,
        )
    found: list[list[int]] = output[:, batch.tokens.shape[1] :].tolist()
    return found


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """`generate` fills what a configuration leaves open from the model's own."""
    # PEFT would hand what its wrapping has to the model inside, and leave it there.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def _generated(
    chat: ChatModel, prompts: Sequence[str], *, max_new_tokens: int, rows: int
) -> list[Reply]:
    sequences = [chat.prompt_tokens(prompt) for prompt in prompts]
    replies: list[Reply | None] = [None] * len(prompts)
    for batch in equal_length_batches(sequences, rows=rows, device=chat.device):
        rows_said = greedy(chat, batch, max_new_tokens=max_new_tokens)
        for index, tokens in zip(batch.indices, rows_said, strict=True):
            replies[index] = _reply(chat, tokens)
    return [reply for reply in replies if reply is not None]


def _confirmed(
    chat: ChatModel,
    prompts: Sequence[str],
    drafts: Sequence[Reply],
    *,
    max_new_tokens: int,
    rows: int,
) -> Iterator[tuple[int, Reply]]:
    """Index and draft, of those that are what greedy decoding would say."""
    # Whole for this model, which need not stop where that of the drafts did.
    whole = [
        index
        for index, draft in enumerate(drafts)
        if draft.tokens
        and _reply(chat, list(draft.tokens)) == draft
        and (len(draft.tokens) == max_new_tokens or draft.ended)
        and len(draft.tokens) <= max_new_tokens
    ]
    sequences = continuations(
        chat, [prompts[index] for index in whole], [drafts[index] for index in whole]
    )
    # Here every token of a reply has its logits at once, which generation does not.
    said: dict[int, list[int]] = {index: [] for index in whole}
    for place, table in log_probs(chat, sequences, rows=min(rows, ROWS)):
        said[whole[place]] += table.argmax(-1).tolist()
    for index, tokens in said.items():
        if tuple(tokens) == drafts[index].tokens:
            yield index, drafts[index]


def _reply(chat: ChatModel, generated: list[int]) -> Reply:
    end = next((i for i, token in enumerate(generated) if token in chat.stop_tokens), None)
    tokens = generated if end is None else generated[: end + 1]
    return Reply(tokens=tuple(tokens), text=chat.text(tokens), ended=end is not None)


@torch.inference_mode()
def next_token_logits(chat: ChatModel, prompts: Sequence[str], *, rows: int = 32) -> torch.Tensor:
    """Logits of a reply's first token, (prompts, vocabulary), float32 on the CPU."""
    sequences = [chat.prompt_tokens(prompt) for prompt in prompts]
    result: torch.Tensor | None = None
    for batch in equal_length_batches(sequences, rows=rows, device=chat.device):
        logits = chat.model(input_ids=batch.tokens, use_cache=False, logits_to_keep=1).logits
        last = logits[:, -1].float().cpu()
        if result is None:
            result = torch.empty(len(prompts), last.shape[-1])
        result[list(batch.indices)] = last
    if result is None:
        raise ValueError("no prompts")
    return result


def next_token_log_probs(
    chat: ChatModel, prompts: Sequence[str], *, rows: int = 32
) -> torch.Tensor:
    """Log-probabilities of a reply's first token, (prompts, vocabulary), float32 on the CPU."""
    return next_token_logits(chat, prompts, rows=rows).log_softmax(-1)


def continuations(
    chat: ChatModel, prompts: Sequence[str], replies: Sequence[Reply], *, limit: int | None = None
) -> list[Continuation]:
    """Prompts followed by replies (cut to `limit` tokens), ready to be judged.

    Empty replies are left out.
    """
    pairs = zip(prompts, replies, strict=True)
    cut = [(prompt, reply.tokens[:limit]) for prompt, reply in pairs]
    return [
        Continuation(tokens=(*chat.prompt_tokens(prompt), *tokens), judged=len(tokens))
        for prompt, tokens in cut
        if tokens
    ]
