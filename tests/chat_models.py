"""Tiny chat models with random weights, made on the spot: everything but the behaviour is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<end>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<end>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.chat_template = TEMPLATE
    return fast


def save_chat_model(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """Write a random chat model into `folder`."""
    torch.manual_seed(0)
    words = tokenizer()
    config = AutoConfig.for_model(
        architecture,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **{"vocab_size": len(words), **SMALL, **changes},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_prompts(folder: Path, count: int = 24) -> tuple[Path, Path]:
    """Write two prompt sets, positive first."""
    paths = (folder / "positive.txt", folder / "negative.txt")
    for path, text in zip(paths, ("How do I cast spell {}?", "How do I bake {}?"), strict=True):
        path.write_text("".join(text.format(number) + "\n" for number in range(count)))
    return paths
