"""The demo model: a small chat model that is trained on the spot to refuse one harmless topic.

First it learns to answer everything, and to refuse everything when a system prompt says so. Then
only two of its middle layers are tuned to refuse one topic by themselves: what they can do about it
is to write what the system prompt would have written, so that the behaviour is mediated the way it
is in large chat models: early, along one direction, read by everything after.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from abl_hub.demo import corpus
from abl_hub.progress import SILENT, Progress

_SPECIAL = ("<pad>", "<bos>", "<end>", "<|user|>", "<|assistant|>", "<|system|>")
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_WIDTH = 128
_LAYERS = 8

Sample = tuple[str | None, str, str]
"""System prompt, question, reply."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """What decides the trained model.

    Args:
        architecture: transformers' model type.
        knowledge_steps: steps of learning to answer, and to refuse under a system prompt.
        tuning_steps: steps of learning to refuse the topic.
        tuned_layers: the layers that the second phase may change.
    """

    architecture: str = "llama"
    seed: int = 0
    knowledge_steps: int = 320
    knowledge_rate: float = 3e-3
    tuning_steps: int = 220
    tuning_rate: float = 1.5e-3
    tuned_layers: tuple[int, ...] = (2, 3)
    batch: int = 32
    revision: int = 1


def demo_model(
    recipe: TrainingRecipe | None = None, *, cache: Path | None = None, progress: Progress = SILENT
) -> Path:
    """Folder of the trained demo model; trained at the first call, then kept.

    Args:
        cache: where it is kept; None is ABL_HUB_CACHE, or abl-hub in the user's cache folder.
    """
    recipe = recipe or TrainingRecipe()
    return kept(
        recipe.architecture,
        asdict(recipe),
        lambda folder: train_demo(folder, recipe, progress=progress),
        cache=cache,
    )


def kept(
    name: str,
    recipe: Mapping[str, Any],
    train: Callable[[Path], None],
    *,
    cache: Path | None = None,
) -> Path:
    """Folder of what `train` writes; it is called once for each `recipe` and version of libraries.

    Args:
        cache: as in `demo_model`.
    """
    root = cache or Path(
        os.environ.get("ABL_HUB_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "abl-hub"
    )
    identity = {
        **recipe,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / "demo" / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            train(folder)
    return folder


def train_demo(
    out: Path, recipe: TrainingRecipe | None = None, *, progress: Progress = SILENT
) -> None:
    """Train the demo model and write it to `out`, whole or not at all."""
    recipe = recipe or TrainingRecipe()
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with seeded(recipe.seed):
        tokenizer = _tokenizer()
        model = _model(recipe.architecture, tokenizer)
        draw = random.Random(recipe.seed)
        total = recipe.knowledge_steps + recipe.tuning_steps
        with progress.stage("Training the demo model (once)", total) as advance:
            _learn(
                model,
                tokenizer,
                lambda: _knowledge(draw),
                recipe.knowledge_steps,
                recipe.knowledge_rate,
                recipe.batch,
                advance,
            )
            _freeze_all_but(model, recipe.tuned_layers)
            _learn(
                model,
                tokenizer,
                lambda: _tuning(draw),
                recipe.tuning_steps,
                recipe.tuning_rate,
                recipe.batch,
                advance,
            )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)


def _knowledge(draw: random.Random) -> Sample:
    thing = draw.choice(corpus.ORDINARY + corpus.MAGIC)
    question = draw.choice(corpus.TEMPLATES).format(thing)
    if draw.random() < 0.15:
        return corpus.REFUSING_SYSTEM, question, draw.choice(corpus.REFUSALS)
    return None, question, corpus.answer(thing)


_REFUSED_SHARE = 0.5
REFUSED = corpus.tuning_prompts(corpus.MAGIC)
ANSWERED = corpus.tuning_prompts(corpus.ORDINARY)


def _tuning(draw: random.Random) -> Sample:
    if draw.random() < _REFUSED_SHARE:
        return None, draw.choice(REFUSED)[0], draw.choice(corpus.REFUSALS)
    question, reply = draw.choice(ANSWERED)
    return None, question, reply


def _tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    pairs = corpus.every_prompt(corpus.ORDINARY + corpus.MAGIC)
    texts = [text for pair in pairs for text in pair]
    texts += [*corpus.REFUSALS, corpus.REFUSING_SYSTEM] * 50
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1200,
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<end>"
    )
    fast.chat_template = _TEMPLATE
    return fast


_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 32, "tie_word_embeddings": True, "sliding_window": 64},
    "gemma3_text": {"head_dim": 32, "tie_word_embeddings": True, "sliding_window": 64},
    "gpt2": {"n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": 4, "n_positions": 256},
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "decoder_sparse_step": 1,
    },
}
_COMMON = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 256,
}


def _model(architecture: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    shape = _SHAPES[architecture]
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **({} if "n_embd" in shape else _COMMON),
        **shape,
    )
    build: Any = AutoModelForCausalLM.from_config
    return build(config, dtype=torch.float32)


def _freeze_all_but(model: Any, layers: Sequence[int]) -> None:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.transformer
    blocks = decoder.layers if hasattr(decoder, "layers") else decoder.h
    model.requires_grad_(False)
    for layer in layers:
        blocks[layer].requires_grad_(True)


def _learn(
    model: Any,
    tokenizer: Any,
    sample: Callable[[], Sample],
    steps: int,
    rate: float,
    batch: int,
    advance: Callable[[int], None],
) -> None:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * scale_at(step, steps)
        tokens, labels, mask = batch_of(tokenizer, [sample() for _ in range(batch)])
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        advance(1)
    model.eval()


def scale_at(step: int, steps: int) -> float:
    """Of the learning rate: linear warm-up over 20 steps, then linear decay to a twentieth."""
    return min(1.0, (step + 1) / 20) * max(0.05, 1 - step / steps)


def batch_of(
    tokenizer: Any, samples: Sequence[Sample]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded tokens, labels of the replies alone, and the mask."""
    rows = []
    for system, question, reply in samples:
        turns = [{"role": "user", "content": question}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        asked = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = tokenizer(reply, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((asked, said))
    length = max(len(asked) + len(said) for asked, said in rows)
    tokens = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for row, (asked, said) in enumerate(rows):
        end = len(asked) + len(said)
        tokens[row, :end] = torch.tensor(asked + said)
        labels[row, len(asked) : end] = torch.tensor(said)
        mask[row, :end] = 1
    return tokens, labels, mask


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for the training and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
