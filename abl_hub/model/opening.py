"""What every reply begins with, whatever was asked: skipped, so that what follows can be judged.

A model that thinks before it answers, or that opens every reply alike, says nothing of a behaviour
in its first tokens: KL there is 0 and every candidate looks harmless. The common opening is put
behind the prompt; a reasoning block is put there closed, so that what comes next is the reply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import greedy_replies

_TOKENS = 24
_NEARLY_ALL = 0.9
# How reasoning begins → the same, closed at once.
_CLOSED = {
    "<think>": "<think>\n\n</think>\n\n",
    "<thought>": "<thought></thought>",
    "[THINK]": "[THINK][/THINK]",
    "<|channel|>analysis<|message|>": (
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>"
    ),
}


def common_opening(chat: ChatModel, prompts: Sequence[str]) -> str:
    """What nine in ten greedy replies to `prompts` begin with, as text to put behind the prompt.

    Where the chat template has begun the reasoning itself, it is what closes it. Ask prompts of
    both sides: what only refusals share is the behaviour, not an opening. Replies that are the same
    from beginning to end share no opening but say the same thing: "".
    """
    begun = _rest_of_reasoning(chat, prompts[0])
    if begun is not None:
        return begun
    sequences = [reply.tokens for reply in greedy_replies(chat, prompts, max_new_tokens=_TOKENS)]
    shared: list[int] = []
    alike = sequences
    while True:
        nexts = Counter(one[len(shared)] for one in alike if len(one) > len(shared) + 1)
        if not nexts or nexts.most_common(1)[0][1] < _NEARLY_ALL * len(sequences):
            break
        token = nexts.most_common(1)[0][0]
        alike = [one for one in alike if one[len(shared) : len(shared) + 1] == (token,)]
        shared.append(token)
    if not shared or len(shared) >= _TOKENS - 1:
        return ""
    text: str = chat.tokenizer.decode(shared, skip_special_tokens=False)
    for begins, closed in _CLOSED.items():
        if text.lstrip().startswith(begins):
            return closed
    return text


def _rest_of_reasoning(chat: ChatModel, prompt: str) -> str | None:
    """What closes the reasoning that the rendered prompt ends in; None where it ends in none."""
    written: str = chat.tokenizer.decode(chat.prompt_tokens(prompt), skip_special_tokens=False)
    for begins, closed in _CLOSED.items():
        if written.rstrip().endswith(begins):
            tail = written[written.rindex(begins) :]
            return closed.removeprefix(tail if closed.startswith(tail) else begins)
    return None


def opened(chat: ChatModel, opening: str) -> ChatModel:
    """The same model, asked with `opening` behind every prompt."""
    return replace(chat, opening=opening) if opening else chat
