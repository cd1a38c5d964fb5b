"""Validation prompts in rounds of 4, 4, 8, 16 …, each in batches that the unedited model has run.

Knows prompts and how they share a forward pass; neither proposals nor scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from abl_hub.model.batches import by_length, right_padded
from abl_hub.model.chat import ChatModel
from abl_hub.model.packed import by_prefix, packed
from abl_hub.model.prefix import shared_prefix
from abl_hub.model.restart import RestartedPass

_FIRST_ROUND = 4
# Few, so that little of a batch is filling.
_ROWS = 8


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
