"""Several prompts in one row, as a tree: whatever any of them begin with alike runs once.

A token attends to its own ancestors and stands at its own depth, so that its prompt is all it
sees. Exact for models whose tokens meet in attention alone (no convolution, no running state), and
that take positions and a mask as they are given; `packs` tells, by trying.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from abl_hub.model.chat import ChatModel
from abl_hub.model.restart import TOLERANCE, RestartedPass

# So that attention within a pack stays a small part of a pass.
LONGEST = 1024


class PackedPass(RestartedPass):
    """A batch of one row that holds several prompts; what is kept of it is as in `RestartedPass`.

    Args:
        tokens: (1, nodes), int64, parents before children.
        last: index of each prompt's last token.
        parents: of each token, the index of the one before it; -1 for a first one.
    """

    def __init__(
        self, chat: ChatModel, tokens: torch.Tensor, last: torch.Tensor, parents: Sequence[int]
    ) -> None:
        super().__init__(chat, tokens, last)
        self.parents = tuple(parents)
        depths: list[int] = []
        sees = torch.eye(len(parents), dtype=torch.bool)
        for node, parent in enumerate(parents):
            depths.append(0 if parent < 0 else depths[parent] + 1)
            if parent >= 0:
                sees[node] |= sees[parent]
        self.sees = sees
        self.positions = torch.tensor([depths], device=tokens.device)
        hidden = torch.finfo(chat.model.dtype).min
        mask = torch.zeros(sees.shape, dtype=chat.model.dtype).masked_fill(~sees, hidden)
        self.mask = mask[None, None].to(tokens.device)

    @torch.inference_mode()
    def last_logits(self) -> torch.Tensor:
        """Logits after each prompt's last token in the model's present state."""
        logits: torch.Tensor = self.chat.model(
            input_ids=self.tokens,
            position_ids=self.positions,
            attention_mask=self.mask,
            use_cache=False,
            logits_to_keep=self.last,
        ).logits
        return logits.flatten(0, 1).float()

    def repeated(self, count: int) -> PackedPass:
        """The same pack `count` times, a row each."""
        many = copy.copy(self)
        many.__dict__.pop("base", None)
        many.tokens = self.tokens.repeat(count, 1)
        many.positions = self.positions.expand(count, -1)
        many.mask = self.mask.expand(count, -1, -1, -1)
        return many

    def rows(self, kept: Sequence[int]) -> PackedPass:
        """The same with only the prompts `kept`, and the tokens that they have."""
        logits, outputs = self.base
        last = self.last[list(kept)]
        nodes = self.sees[last.cpu()].any(0).nonzero()[:, 0].tolist()
        new = {old: index for index, old in enumerate(nodes)}
        part = PackedPass(
            self.chat,
            self.tokens[:, nodes],
            torch.tensor([new[node] for node in last.tolist()], device=last.device),
            [new.get(self.parents[node], -1) for node in nodes],
        )
        count = self.tokens.shape[1]

        def cut(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == count:
                return value[:, nodes]
            return type(value)(map(cut, value)) if isinstance(value, tuple | list) else value

        part.__dict__["base"] = (logits[list(kept)], [cut(output) for output in outputs])
        return part


def packed(chat: ChatModel, sequences: Sequence[Sequence[int]]) -> PackedPass:
    """All `sequences` of token ids in one row; `last` is in their order."""
    tokens: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    last = []
    for sequence in sequences:
        node = -1
        for token in sequence:
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = children[node, token]
        last.append(node)
    device = chat.device
    return PackedPass(
        chat, torch.tensor([tokens], device=device), torch.tensor(last, device=device), parents
    )


def by_prefix(sequences: Sequence[Sequence[int]], *, rows: int) -> list[list[int]]:
    """Indices of `sequences` in packs of at most `rows`, like beginnings next to each other.

    A pack's sequences are at most `LONGEST` tokens together, unless there is but one.
    """
    packs: list[list[int]] = []
    room = 0
    for index in sorted(range(len(sequences)), key=lambda index: tuple(sequences[index])):
        length = len(sequences[index])
        if not packs or length > room or len(packs[-1]) == rows:
            packs.append([])
            room = LONGEST
        packs[-1].append(index)
        room -= length
    return packs


def packs(chat: ChatModel, sequences: Sequence[Sequence[int]]) -> bool:
    """Whether packing changes nothing in this model: tried on the longest prompt and another."""
    taken = inspect.signature(chat.model.forward).parameters
    implementation = getattr(chat.model.config, "_attn_implementation", None)
    if "position_ids" not in taken or implementation not in ("sdpa", "eager"):
        return False
    longest = max(sequences, key=len)
    other = next((one for one in sequences if list(one) != list(longest)), longest)
    try:
        together = packed(chat, [other, longest]).last_logits()
    except (TypeError, ValueError, IndexError, RuntimeError):
        return False  # a layer, a mask or a head that takes its input in another form
    alone = torch.cat([_alone(chat, one) for one in (other, longest)])
    scale = max(1.0, float(alone.abs().max()))
    return float((together - alone).abs().max()) <= TOLERANCE * scale


def _alone(chat: ChatModel, sequence: Sequence[int]) -> torch.Tensor:
    """Logits after one prompt, as the model gives them by itself, (1, vocabulary)."""
    tokens = torch.tensor([list(sequence)], device=chat.device)
    last = torch.tensor([len(sequence) - 1], device=chat.device)
    return RestartedPass(chat, tokens, last).last_logits()
