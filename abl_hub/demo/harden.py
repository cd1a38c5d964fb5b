"""The demo model, trained on until its refusals lie in two directions, either of which is enough.

The known case of a hardened model, for what tells one from a failed run. While it is trained, a
single direction is ablated from its residual stream on half the prompts, and it is to refuse all
the same: any layer's and position's difference in means, as they are then, or the second of two
successive ones, at strengths that vary. With both of these two ablated it is to answer. Ordinary
prompts are answered throughout.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from abl_hub.demo import corpus
from abl_hub.demo.train import ANSWERED, REFUSED, batch_of, demo_model, kept, scale_at, seeded
from abl_hub.directions.evidence import activations
from abl_hub.directions.methods.difference import mean_difference
from abl_hub.directions.methods.projected import projected_mean_difference, without
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.progress import SILENT, Progress

_REFUSED_SHARE = 0.6
_ASKED = 24


@dataclass(frozen=True, kw_only=True)
class HardeningRecipe:
    """What decides the hardened model, beside the demo model that it begins as.

    Args:
        refresh: steps after which the directions are taken anew.
        layers: where the successive directions are taken; the last position.
        untouched: share of the prompts without ablation; `single` is that with one direction
            ablated, from the rest two are.
        strongest: strengths of a single direction's ablation are drawn from 0 to this.
    """

    seed: int = 0
    steps: int = 320
    rate: float = 1e-3
    batch: int = 32
    refresh: int = 10
    layers: tuple[int, ...] = (3, 4, 5)
    untouched: float = 0.15
    single: float = 0.55
    strongest: float = 2.0
    revision: int = 1


def hardened_model(
    recipe: HardeningRecipe | None = None,
    *,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Folder of the hardened demo model; trained at the first call, then kept beside that one."""
    recipe = recipe or HardeningRecipe()
    base = demo_model(cache=cache, progress=progress)
    return kept(
        "hardened",
        {**asdict(recipe), "base": base.name},
        lambda folder: _train(base, folder, recipe, progress),
        cache=cache,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ablated:
    """What is ablated from each row of a batch.

    Args:
        bases: (rows, 2, width), orthonormal or zero.
        strengths: (rows, layers + 1): behind the embedding and behind each block.
    """

    bases: torch.Tensor
    strengths: torch.Tensor


def _train(base: Path, out: Path, recipe: HardeningRecipe, progress: Progress) -> None:
    chat = load_chat_model(base)
    model = chat.model.requires_grad_(True)
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=0.01)
    draw = random.Random(recipe.seed)
    with seeded(recipe.seed), progress.stage("Hardening (once)", recipe.steps) as advance:
        for step in range(recipe.steps):
            if step % recipe.refresh == 0:
                model.eval()
                pairs = [_successive(chat, layer, draw) for layer in recipe.layers]
                singles = (list(torch.cat(pairs)), _differences(chat, draw))
                model.train()
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * scale_at(step, recipe.steps)
            rows = [_row(draw, recipe) for _ in range(recipe.batch)]
            ablated = _ablated(chat, [kind for kind, *_ in rows], singles, pairs, draw, recipe)
            samples = [(None, question, reply) for _, question, reply in rows]
            tokens, labels, mask = batch_of(chat.tokenizer, samples)
            with _ablating(chat, ablated):
                loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            advance(1)
    partial = out.with_name(out.name + ".partial")
    model.eval().save_pretrained(partial)
    chat.tokenizer.save_pretrained(partial)
    partial.rename(out)


def _row(draw: random.Random, recipe: HardeningRecipe) -> tuple[int, str, str]:
    """How many directions are ablated; question; reply."""
    refused = draw.random() < _REFUSED_SHARE
    kind = draw.random()
    count = 0 if kind < recipe.untouched else 1 if kind < recipe.untouched + recipe.single else 2
    question, answer = draw.choice(REFUSED if refused else ANSWERED)
    return count, question, draw.choice(corpus.REFUSALS) if refused and count < 2 else answer


def _ablated(
    chat: ChatModel,
    counts: Sequence[int],
    singles: Sequence[Sequence[torch.Tensor]],
    pairs: Sequence[torch.Tensor],
    draw: random.Random,
    recipe: HardeningRecipe,
) -> _Ablated:
    bases = torch.zeros(len(counts), 2, chat.width)
    strengths = torch.ones(len(counts), len(chat.layers) + 1)
    for row, count in enumerate(counts):
        if count == 1:
            bases[row, 0] = draw.choice(draw.choice(singles))
            way = draw.randrange(3)
            if way == 1:
                strengths[row] = draw.uniform(0, recipe.strongest)
            elif way == 2:
                strengths[row] = recipe.strongest * torch.rand(strengths.shape[1])
        elif count == 2:
            bases[row] = draw.choice(pairs)
    return _Ablated(bases=bases, strengths=strengths)


@contextmanager
def _ablating(chat: ChatModel, ablated: _Ablated) -> Iterator[None]:
    """Ablation of each row's own directions, behind the embedding and behind every block."""

    def hook(place: int) -> Any:
        strength = ablated.strengths[:, place, None, None]

        def after(_module: Any, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            along = strength * torch.einsum("bsw,bkw->bsk", hidden, ablated.bases)
            hidden = hidden - along @ ablated.bases
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return after

    with ExitStack() as stack:
        for place, module in enumerate((chat.model.get_input_embeddings(), *chat.layers)):
            stack.callback(module.register_forward_hook(hook(place)).remove)
        yield


def _sides(chat: ChatModel, draw: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompts, layers, positions, width) of refused and of answered prompts."""
    one, other = (
        activations(chat, [question for question, _ in draw.sample(side, _ASKED)])
        for side in (REFUSED, ANSWERED)
    )
    return one, other


def _differences(chat: ChatModel, draw: random.Random) -> list[torch.Tensor]:
    """Every layer's and position's difference in means, as it is and projected; unit length."""
    one, other = _sides(chat, draw)
    means = mean_difference(one, other)
    both = torch.stack([means, without(means, other.double().mean(0))]).flatten(0, 2)
    return list((both / both.norm(dim=-1, keepdim=True)).float())


def _successive(chat: ChatModel, layer: int, draw: random.Random) -> torch.Tensor:
    """The projected difference in means, and the same with that one ablated; (2, width)."""
    first = projected_mean_difference(*(side[:, layer, -1] for side in _sides(chat, draw)))
    first = (first / first.norm()).float()
    alone = _Ablated(
        bases=torch.stack([first, torch.zeros_like(first)])[None],
        strengths=torch.ones(1, len(chat.layers) + 1),
    )
    with _ablating(chat, alone):
        one, other = _sides(chat, draw)
    second = projected_mean_difference(one[:, layer, -1], other[:, layer, -1]).float()
    second = second - (second @ first) * first
    return torch.stack([first, second / second.norm()])
