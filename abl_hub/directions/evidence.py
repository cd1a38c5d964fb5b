"""What methods work from: the means of both sides, and, for those that ask, single activations.

Knows a loaded model and a contrast; not which directions will be made of them. What no method asks
for is never computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.means import Means
from abl_hub.model.batches import equal_length_batches
from abl_hub.model.chat import ChatModel
from abl_hub.model.stream import reading

MOST_SAMPLES = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Activations of single training prompts, both sides.

    Args:
        positive: (prompts, layers, positions, width), float32, on the CPU.
        negative: likewise.
    """

    positive: torch.Tensor
    negative: torch.Tensor

    def paired_differences(self, seed: int) -> torch.Tensor:
        """positive − negative of randomly paired prompts, (pairs, layers, positions, width)."""
        count = min(len(self.positive), len(self.negative))
        generator = torch.Generator().manual_seed(seed)
        one = torch.randperm(len(self.positive), generator=generator)[:count]
        other = torch.randperm(len(self.negative), generator=generator)[:count]
        return self.positive[one] - self.negative[other]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A contrast as a model shows it.

    Args:
        rank: most directions that a method may propose to remove together.
        categories: positive prompt → its category, where the prompt set carries them.
        behaviour_tokens: first tokens of replies that show the behaviour.
        seed: of every random choice that a method makes.
    """

    chat: ChatModel
    contrast: Contrast
    means: Means
    behaviour_tokens: tuple[int, ...]
    categories: Mapping[str, str] = field(default_factory=dict, repr=False)
    rank: int = 1
    seed: int = 0
    rows: int = 32

    @cached_property
    def samples(self) -> Samples:
        """At most 256 training prompts a side: 256 · layers · positions · width · 4 bytes each."""
        return Samples(
            positive=activations(self.chat, self.contrast.positive.train, rows=self.rows),
            negative=activations(self.chat, self.contrast.negative.train, rows=self.rows),
        )


@torch.inference_mode()
def activations(
    chat: ChatModel, prompts: Sequence[str], *, positions: int | None = None, rows: int = 32
) -> torch.Tensor:
    """Block outputs at the last `positions` tokens (None: all after the instruction).

    Of at most 256 prompts: (prompts, layers, positions, width), float32, on the CPU.
    """
    chosen = prompts[:MOST_SAMPLES]
    kept_positions = positions or len(chat.post_instruction_tokens)
    kept = torch.empty(len(chosen), len(chat.layers), kept_positions, chat.width)
    where: list[int] = []

    def keep(layer: int, hidden: torch.Tensor) -> None:
        kept[where, layer] = hidden[:, -kept_positions:].float().cpu()

    sequences = [chat.prompt_tokens(prompt) for prompt in chosen]
    with reading(chat.layers, keep):
        for batch in equal_length_batches(sequences, rows=rows, device=chat.device):
            where[:] = batch.indices
            chat.model(input_ids=batch.tokens, use_cache=False, logits_to_keep=1)
    return kept
