"""A base and its delta, one model in memory: replies of both, token by token.

Every step sets the adapter, feeds one row and lets go of the lock, so users at different strengths
share the model without seeing each other. Knows no user interface.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel
from room import DoesNotFitError, check
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

__all__ = ["CannotReplyError", "DoesNotFitError", "Pair", "Reply", "Sampling"]

Turns = Sequence[dict[str, str]]


class CannotReplyError(Exception):
    """A conversation that the model cannot answer; the text is for whoever asked."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: temperature 0 is greedy; the seed makes it repeatable."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 128


@dataclass(kw_only=True)
class Row:
    """One reply as it grows: tokens, their projections on the direction, the row's own cache."""

    pending: torch.Tensor
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    projections: list[float] = field(default_factory=list)
    cache: Any = None
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one side has said so far: text, and (token text, projection) for each token."""

    text: str
    tokens: tuple[tuple[str, float], ...]


class Pair:
    """The base model, its tokenizer, the delta, and the direction that the delta removes."""

    def __init__(self, config: dict[str, Any], *, device: str, folder: str) -> None:
        """Load both.

        Raises:
            DoesNotFitError: there is not enough memory.
            OSError: a repository or file that cannot be read.
            ValueError: a model that transformers cannot load without code of its repository, which
                is never run, or not at all.
        """
        base, revision = config["base"], config["base_revision"]
        delta = {"pretrained_model_name_or_path": config["delta"]}
        delta["revision"] = config["delta_revision"]
        adapter = PeftConfig.from_pretrained(**delta)
        # A delta with biases of its own cannot be switched off by PEFT; then the base is loaded
        # once more. What it stores whole has no strength between off and on.
        switchable = adapter.bias == "none"
        self.adjustable = switchable and not adapter.modules_to_save
        check(base, revision, device=device, copies=1 if switchable else 2)
        # Left out, transformers would ask on stdin, and take the next line there for the answer.
        pinned: Any = {"revision": revision, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base, **pinned)

        def load() -> Any:
            auto = _auto_class(AutoConfig.from_pretrained(base, **pinned))
            return auto.from_pretrained(base, **pinned, dtype="auto", use_safetensors=True)

        self.model: Any = PeftModel.from_pretrained(
            load(), config["delta"], revision=config["delta_revision"]
        )
        self.model.to(device).eval()
        self.base = self.model if switchable else load().to(device).eval()
        self.device = torch.device(device)
        self.lock = threading.Lock()
        self.scales = [
            (module, dict(module.scaling))
            for module in self.model.modules()
            if hasattr(module, "scaling") and hasattr(module, "set_scale")
        ]
        stops = self.base.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.stops = frozenset([stops] if isinstance(stops, int) else stops or [])
        text_config = self.base.config.get_text_config()
        self.longest: int | None = getattr(text_config, "max_position_embeddings", None)
        self.direction: torch.Tensor | None = None
        if config["direction"]:
            self.direction = load_file(f"{folder}/{config['direction']}")["direction"].float()
        self.layer = int(config["layer"])

    def replies(
        self, before: Turns, after: Turns, *, strength: float, sampling: Sampling
    ) -> Iterator[tuple[Reply, Reply]]:
        """Both replies after every token: the base's to `before`, the edited one's to `after`.

        Raises:
            CannotReplyError: the template refuses the turns, or they are too long.
        """
        rows = (self._row(before, sampling), self._row(after, sampling))
        # Strength 0 is the base itself, whatever the delta holds.
        scales = (None, strength or None)
        for _ in range(self._room(rows, sampling.max_new_tokens)):
            for row, scale in zip(rows, scales, strict=True):
                if not row.done:
                    self._step(row, scale, sampling)
            yield self._reply(rows[0]), self._reply(rows[1])
            if all(row.done for row in rows):
                return

    def _room(self, rows: Sequence[Row], asked: int) -> int:
        """As many tokens as were asked for, or as fit behind the longer conversation."""
        longest = max(row.pending.shape[1] for row in rows)
        return asked if self.longest is None else min(asked, self.longest - longest)

    def _row(self, turns: Turns, sampling: Sampling) -> Row:
        try:
            text = self.tokenizer.apply_chat_template(
                list(turns), add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise CannotReplyError(f"This model's chat template says: {error}") from error
        tokens = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if self.longest is not None and tokens.shape[1] >= self.longest:
            raise CannotReplyError(
                f"The conversation has {tokens.shape[1]} tokens and the model reads {self.longest}:"
                " start a new one."
            )
        generator = torch.Generator(self.device).manual_seed(sampling.seed)
        return Row(pending=tokens.to(self.device), generator=generator)

    @torch.inference_mode()
    def _step(self, row: Row, scale: float | None, sampling: Sampling) -> None:
        """Feed what is pending, choose the next token; the adapter is set for this step only."""
        seen: list[float] = []
        with self.lock:
            model = self.base if scale is None else self.model
            watching = _layers(model)[self.layer].register_forward_hook(self._watch(seen))
            try:
                if scale is None and self.base is self.model:
                    with self.model.disable_adapter():
                        output = _forward(model, row)
                else:
                    self._set_strength(scale)
                    output = _forward(model, row)
            finally:
                watching.remove()
        if row.tokens:
            row.projections.append(seen[-1] if seen else 0.0)
        row.cache = output.past_key_values
        chosen = _choose(output.logits[0, -1].float(), row.generator, sampling)
        row.pending = torch.tensor([[chosen]], device=self.device)
        row.done = chosen in self.stops
        if not row.done:
            row.tokens.append(chosen)
            row.pieces.append(self.tokenizer.decode([chosen]))

    def _set_strength(self, scale: float | None) -> None:
        if scale is not None and self.adjustable:
            for module, adapters in self.scales:
                for adapter in adapters:
                    module.set_scale(adapter, scale)

    def _watch(self, seen: list[float]) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if self.direction is not None:
                last = hidden[0, -1].float()
                seen.append(float(last @ self.direction.to(last)))

        return hook

    def _reply(self, row: Row) -> Reply:
        text: str = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        # The newest token's projection is known once it has been fed.
        return Reply(text=text, tokens=tuple(zip(row.pieces, row.projections, strict=False)))


def _forward(model: Any, row: Row) -> Any:
    return model(input_ids=row.pending, past_key_values=row.cache, use_cache=True)


def _choose(logits: torch.Tensor, generator: torch.Generator, sampling: Sampling) -> int:
    if sampling.temperature <= 0:
        return int(logits.argmax())
    probabilities = (logits / sampling.temperature).softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    # Keep the smallest head of the distribution that holds top_p; always at least one token.
    ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])


def _auto_class(config: Any) -> Any:
    """Causal, or for what is none a multimodal wrapper's: what the delta was made on."""
    causal: Any = AutoModelForCausalLM
    wrapper: Any = AutoModelForImageTextToText
    known = type(config) in wrapper._model_mapping and type(config) not in causal._model_mapping
    return wrapper if known else causal


def _layers(model: Any) -> torch.nn.ModuleList:
    """The decoder layers: the largest of the outermost lists of modules."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    root = decoder if isinstance(decoder, torch.nn.Module) else model
    lists = [
        (name.count("."), module)
        for name, module in root.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) > 0
    ]
    outermost = min(depth for depth, _ in lists)
    return max(
        (module for depth, module in lists if depth == outermost),
        key=lambda module: sum(weight.numel() for weight in module.parameters()),
    )
