"""Replies that are neither refusal nor answer: empty, repeating, gibberish.

An edit can leave no refusal, a small first-token KL, and nothing but noise. So replies are read
whole: how often they repeat themselves, and how likely the unedited model finds them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import Reply, continuations
from abl_hub.model.teacher_forcing import token_log_probs

NonAnswer = Literal["empty", "repeating", "gibberish"]

_FEWEST_TO_REPEAT = 12
_MOST_COMMON_SHARE = 0.4
_SURPRISING_SHARE = 0.1
_MARGIN_NATS = 2.0


def is_empty(reply: Reply) -> bool:
    """No letter and no digit."""
    return re.search(r"\w", reply.text) is None


def is_repeating(reply: Reply) -> bool:
    """The second half of the reply is mostly one token triple, over and over."""
    tokens = reply.tokens[len(reply.tokens) // 2 :]
    if len(tokens) < _FEWEST_TO_REPEAT:
        return False
    triples = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    longest_cycle = 6
    covered = sum(count for _, count in triples.most_common(longest_cycle) if count > 1)
    distinct = len(triples) / (len(tokens) - 2)
    return distinct <= _MOST_COMMON_SHARE and covered / (len(tokens) - 2) >= 1 - _MOST_COMMON_SHARE


def surprise(chat: ChatModel, prompts: Sequence[str], replies: Sequence[Reply]) -> list[float]:
    """How unlikely `chat` finds each reply: mean negative log-likelihood in nats a token.

    The most surprising tenth of the tokens (at least one) is left out: the opening that departs
    from what the model would have said is not gibberish. Empty replies get 0.
    """
    kept = [i for i, reply in enumerate(replies) if reply.tokens]
    sequences = continuations(chat, [prompts[i] for i in kept], [replies[i] for i in kept])
    result = [0.0] * len(replies)
    for index, found in zip(kept, token_log_probs(chat, sequences), strict=True):
        losses = -found
        drop = max(1, int(_SURPRISING_SHARE * len(losses)))
        rest = losses.sort().values[: max(1, len(losses) - drop)]
        result[index] = float(rest.mean())
    return result


def gibberish_limit(ordinary: Sequence[float]) -> float:
    """Surprise above which a reply is gibberish: 2 nats a token above the base's own most."""
    return max(ordinary, default=0.0) + _MARGIN_NATS


def non_answer(reply: Reply, surprise_nats: float, limit: float) -> NonAnswer | None:
    """Why a reply is no answer; None if it may be one."""
    if is_empty(reply):
        return "empty"
    if is_repeating(reply):
        return "repeating"
    if surprise_nats > limit:
        return "gibberish"
    return None
