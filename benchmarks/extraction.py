"""Extraction against a bare forward pass over the same tokens: seconds, and memory as prompts grow.

    python benchmarks/extraction.py [--shape small] [--device cpu]
    python benchmarks/extraction.py --shape 1b --shape 8b --shape 32b --device cuda

A llama-like model with random weights and the demo's tokenizer; the bare pass runs the same batches
and keeps nothing. Each way runs `--runs` times, in turn; memory is the growth of the peak beyond
the loaded model, on the CPU in a process of its own. Selection and the fit of strengths are timed
on the same model, once each: what is found in random weights means nothing, what it costs does.
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
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from abl_hub.demo.train import demo_model
from abl_hub.directions.contrast import Contrast, Split
from abl_hub.directions.evidence import Evidence
from abl_hub.directions.means import mean_activations
from abl_hub.directions.methods import METHODS
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import behaviour_tokens, select, validate
from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import Active, prepared
from abl_hub.model.batches import equal_length_batches
from abl_hub.model.chat import ChatModel
from abl_hub.model.gains import gains
from abl_hub.model.trace import trace_writers
from abl_hub.stages.strengths import lesson_of
from abl_hub.strengths.fit import fit
from abl_hub.strengths.groups import groups

FULL_BATCHES = 448
"""Prompts a side of which every length fills its batches."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model's cost depends on."""

    width: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int | None = None
    """None is the tokenizer's own."""


SHAPES = {
    "small": Shape(width=512, inner=1536, layers=12, heads=8, key_value_heads=8),
    "tiny": Shape(width=256, inner=768, layers=6, heads=4, key_value_heads=4),
    "1b": Shape(width=2048, inner=8192, layers=16, heads=32, key_value_heads=8, vocabulary=128256),
    "8b": Shape(width=4096, inner=14336, layers=32, heads=32, key_value_heads=8, vocabulary=128256),
    "32b": Shape(
        width=5120, inner=27648, layers=64, heads=40, key_value_heads=8, vocabulary=152064
    ),
}


def made(shape: Shape, device: str) -> ChatModel:
    """Random weights; in bfloat16 where there is a GPU."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary or len(tokenizer),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32 if device == "cpu" else torch.bfloat16
        )
    return ChatModel(model=model.eval().requires_grad_(False), tokenizer=tokenizer)


def contrast(count: int) -> Contrast:
    def side(name: str) -> Split:
        words = ("one", "two", "three", "four", "five", "six", "seven")
        prompts = tuple(
            f"{name} number {i}: " + " ".join(words[: 1 + i % len(words)]) * 3 for i in range(count)
        )
        return Split(train=prompts, validation=prompts[: count // 4], test=())

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
    chat = made(SHAPES["tiny"], "cpu")
    bare(chat, contrast(FULL_BATCHES))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mean_activations(chat, contrast(arguments.memory))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps((after - before) / 1024))


def compare(name: str, arguments: argparse.Namespace) -> None:
    """One shape: the bare pass and extraction in turn, then selection and fit."""
    device, shape = arguments.device, SHAPES[name]
    chat = made(shape, device)
    asked = contrast(arguments.prompts)
    bare(chat, asked)
    means = mean_activations(chat, asked)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        weights = torch.cuda.memory_allocated()
    pairs = [
        (
            seconds(lambda: bare(chat, asked), device),
            seconds(lambda: mean_activations(chat, asked), device),
        )
        for _ in range(arguments.runs)
    ]
    plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for other, one in pairs)
    parameters = sum(weight.numel() for weight in chat.model.parameters())
    print(
        f"{name}: {parameters / 1e9:.2f} B parameters, {shape.layers} layers of width "
        f"{shape.width}, {chat.model.dtype}, 2 × {arguments.prompts} prompts, {device}, "
        f"{torch.get_num_threads()} thread(s), {arguments.runs} runs, in turn\n\n"
        "| way | seconds, median | ratio, median of pairs |\n|---|---:|---:|\n"
        f"| bare forward | {plain:.2f} | 1.00 |\n| extraction | {ours:.2f} | {ratio:.2f} |",
        flush=True,
    )
    if device != "cpu":
        grown = (torch.cuda.max_memory_allocated() - weights) / 1e6
    tokens = behaviour_tokens(means)
    evidence = Evidence(chat=chat, contrast=asked, means=means, behaviour_tokens=tokens)
    proposals = METHODS["difference"](evidence)
    trace = trace_writers(chat.model)
    between = gains(chat.model, trace.writers)

    @cache
    def ready(proposal: Proposal) -> Active:
        return prepared(remove(proposal.basis, trace.writers), chat.model, between)

    def ablate(proposal: Proposal) -> AbstractContextManager[None]:
        return ready(proposal)()

    def selection() -> None:
        select(chat, proposals, validate(chat, asked, tokens), method="difference", ablate=ablate)

    def fitting() -> None:
        edit = remove(proposals[len(proposals) // 2].basis, trace.writers)
        lesson = lesson_of(chat, asked, tokens, rows=32)
        fit(chat, [edit], groups(trace), between, lesson)

    for what, way in ((f"selection of {len(proposals)} candidates", selection), ("fit", fitting)):
        print(f"| {what} | {seconds(way, device):.2f} | |", flush=True)
    if device != "cpu":
        print(f"\nPeak memory of the first two beyond the weights: {grown:.0f} MB")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.memory:
        memory(arguments)
        return
    for name in arguments.shape or ["small"]:
        compare(name, arguments)
    if arguments.device != "cpu":
        return
    print("| prompts a side | peak memory beyond the model, MB |\n|---:|---:|")
    for count in (FULL_BATCHES, 10 * FULL_BATCHES):
        words = [sys.executable, __file__, "--memory", str(count)]
        grown = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
        print(f"| {count} | {grown:.0f} |", flush=True)


if __name__ == "__main__":
    main()
