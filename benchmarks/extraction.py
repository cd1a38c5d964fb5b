"""Extraction against a bare forward pass over the same tokens: seconds, and memory as prompts grow.

    python benchmarks/extraction.py [--width 512] [--layers 12] [--device cpu]

A llama-like model with random weights and the demo's tokenizer; the bare pass runs the same batches
and keeps nothing. Each way runs `--runs` times, in turn; memory is the growth of the peak beyond
the loaded model, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from abl_hub.demo.train import demo_model
from abl_hub.directions.contrast import Contrast, Split
from abl_hub.directions.means import mean_activations
from abl_hub.model.batches import equal_length_batches
from abl_hub.model.chat import ChatModel

FULL_BATCHES = 448
"""Prompts a side of which every length fills its batches."""


def made(width: int, layers: int, device: str) -> ChatModel:
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=len(tokenizer),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(device).eval().requires_grad_(False)
    return ChatModel(model=model, tokenizer=tokenizer)


def contrast(count: int) -> Contrast:
    def side(name: str) -> Split:
        words = ("one", "two", "three", "four", "five", "six", "seven")
        prompts = tuple(
            f"{name} number {i}: " + " ".join(words[: 1 + i % len(words)]) * 3 for i in range(count)
        )
        return Split(train=prompts, validation=(), test=())

    return Contrast(positive=side("wish"), negative=side("recipe"))


@torch.inference_mode()
def bare(chat: ChatModel, asked: Contrast) -> None:
    for side in (asked.positive.train, asked.negative.train):
        sequences = [chat.prompt_tokens(prompt) for prompt in side]
        for batch in equal_length_batches(sequences, rows=32, device=chat.device):
            chat.model(input_ids=batch.tokens, use_cache=False, logits_to_keep=1)


def seconds(way: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    way()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(arguments: argparse.Namespace) -> None:
    """In a process of its own: growth of the peak beyond the loaded model, in MB."""
    chat = made(256, 4, "cpu")
    bare(chat, contrast(FULL_BATCHES))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mean_activations(chat, contrast(arguments.memory))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps((after - before) / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.memory:
        memory(arguments)
        return
    chat = made(arguments.width, arguments.layers, arguments.device)
    asked = contrast(arguments.prompts)
    bare(chat, asked)
    mean_activations(chat, asked)
    pairs = [
        (
            seconds(lambda: bare(chat, asked), arguments.device),
            seconds(lambda: mean_activations(chat, asked), arguments.device),
        )
        for _ in range(arguments.runs)
    ]
    plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for other, one in pairs)
    print(
        f"{arguments.layers} layers of width {arguments.width}, 2 × {arguments.prompts} prompts, "
        f"{arguments.device}, {torch.get_num_threads()} thread(s), {arguments.runs} runs, in turn"
        "\n\n"
        "| way | seconds, median | ratio, median of pairs |\n|---|---:|---:|\n"
        f"| bare forward | {plain:.2f} | 1.00 |\n| extraction | {ours:.2f} | {ratio:.2f} |\n"
    )
    print("| prompts a side | peak memory beyond the model, MB |\n|---:|---:|")
    for count in (FULL_BATCHES, 10 * FULL_BATCHES):
        words = [sys.executable, __file__, "--memory", str(count)]
        grown = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
        print(f"| {count} | {grown:.0f} |", flush=True)


if __name__ == "__main__":
    main()
