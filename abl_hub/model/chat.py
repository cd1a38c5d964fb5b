"""A chat model, loaded: weights, tokenizer, chat template, decoder layers.

Knows how a prompt becomes tokens and which of them come after the instruction; knows neither
where the files came from nor what will be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, BitsAndBytesConfig

from abl_hub.errors import SourceError, UnsupportedModelError
from abl_hub.model.layers import decoder_layers
from abl_hub.model.meta import auto_class, read_config

LoadIn = Literal["4bit", "8bit"]

# Endings as different as prompts can have, so that what all of them share is the template's.
_PROBES = ("a", "Why?", "Name three colours.", "x = 1", "Go!")
_SYSTEM = "Zebra"  # a system prompt that no template writes by itself


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatModel:
    """A causal language model with its tokenizer and chat template, ready for inference."""

    model: Any
    """A causal language model of transformers, or PEFT's wrapping of one."""
    tokenizer: Any
    system: str | None = None
    """System prompt put before every instruction; None leaves the template's default."""
    opening: str = ""
    """Text put behind every prompt: what all replies begin with (`abl_hub.model.opening`)."""

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers; layer l is 0-based and means the output of block l."""
        layers: nn.ModuleList = decoder_layers(self.model)[1]
        return layers

    @cached_property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def prompt_tokens(self, instruction: str) -> list[int]:
        """Token ids of one user turn with the generation prompt, as the model would be asked.

        Raises:
            SourceError: the chat template does not render.
        """
        text = self._asked(instruction) + self.opening
        # The template has written the special tokens; adding them again would double the first.
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    @cached_property
    def default_system(self) -> str | None:
        """The system prompt that the template writes where a conversation has none, as Qwen2.5's.

        None where it writes none, or writes it even beside an empty one: then none can be left out.
        """
        try:
            named, empty = self._written(_PROBES[0], _SYSTEM), self._written(_PROBES[0], "")
        except TemplateError:
            return None  # the template knows no system role
        silent = self._written(_PROBES[0], None)
        before, found, after = named.partition(_SYSTEM)
        around = silent.startswith(before) and silent.endswith(after)
        if not found or not around or silent == empty:
            return None
        return silent[len(before) : len(silent) - len(after)] or None

    def _written(self, instruction: str, system: str | None) -> str:
        turns = [{"role": "user", "content": instruction}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        text: str = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        return text

    def _asked(self, instruction: str) -> str:
        try:
            return self._written(instruction, self.system)
        except TemplateError as error:
            raise SourceError(
                "The model's chat template cannot write a prompt"
                + (" with a system prompt" if self.system is not None else ""),
                why=_first_line(error),
                next_step="Drop --system" if self.system is not None else "Repair the template",
            ) from error

    @cached_property
    def post_instruction_tokens(self) -> list[int]:
        """The template's tokens after the instruction, shared by every prompt (Arditi, 2.3)."""
        shared = self.prompt_tokens(_PROBES[0])
        for probe in _PROBES[1:]:
            tokens = self.prompt_tokens(probe)
            length = 0
            while (
                length < min(len(shared), len(tokens))
                and shared[-1 - length] == tokens[-1 - length]
            ):
                length += 1
            shared = shared[len(shared) - length :]
        # A template that ends with the instruction still has the prompt's last token.
        return shared or self.prompt_tokens(_PROBES[0])[-1:]

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end a reply."""
        stops = self.model.generation_config.eos_token_id
        if stops is None:
            stops = self.tokenizer.eos_token_id
        if stops is None:
            return frozenset()
        return frozenset([stops] if isinstance(stops, int) else stops)

    def text(self, tokens: list[int]) -> str:
        """A reply's tokens as text, without special tokens."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def load_chat_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    load_in: LoadIn | None = None,
    system: str | None = None,
    opening: str = "",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load a model folder for inference.

    Args:
        dtype: None keeps the checkpoint's own.
        device: a torch device, or "auto" to spread the model over what there is.
        load_in: quantise linear layers while loading, to save memory (bitsandbytes).
        chat_template: instead of the tokenizer's own, which need not have one then.

    Raises:
        SourceError: unreadable or truncated files, weights that are not finite, no chat template.
        UnsupportedModelError: not a causal language model that transformers can build.
    """
    tokenizer = load_tokenizer(
        folder, chat_template=chat_template, trust_remote_code=trust_remote_code
    )
    quantised = {} if load_in is None else _quantised(load_in, dtype)
    model: Any
    config = read_config(folder, trust_remote_code=trust_remote_code)
    try:
        model = auto_class(config).from_pretrained(
            folder,
            **{
                "dtype": dtype or "auto",
                "device_map": device if device == "auto" or load_in else None,
                **quantised,
            },
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
        )
    except SafetensorError as error:
        raise SourceError(
            f"The weights in {folder} cannot be read",
            why=f"a shard is corrupt or truncated ({error})",
            next_step="Delete it, and download it or make it again",
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedModelError(
            f"{folder} is not a causal language model that transformers can load",
            why=_first_line(error),
        ) from error
    except (OSError, RuntimeError) as error:
        raise SourceError(
            f"The model in {folder} cannot be loaded", why=_first_line(error)
        ) from error
    if device != "auto" and load_in is None:
        model = model.to(device)
    model.eval().requires_grad_(False)
    broken = next(
        (
            name
            for name, weight in model.named_parameters()
            if not weight.is_meta and not bool(torch.isfinite(weight).all())
        ),
        None,
    )
    if broken is not None:
        raise SourceError(
            f"The weights in {folder} are not finite",
            why=f"{broken} holds NaN or infinity",
            next_step="Use an intact checkpoint",
        )
    return ChatModel(model=model, tokenizer=tokenizer, system=system, opening=opening)


def _quantised(load_in: LoadIn, dtype: torch.dtype | None) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantise."""
    if find_spec("bitsandbytes") is None:
        raise SourceError(
            f"A model cannot be loaded in {load_in} here",
            why="bitsandbytes is not installed",
            next_step="Run `pip install abl-hub[bitsandbytes]`",
        )
    if load_in == "8bit":
        # Its products are taken in float16, whatever comes in.
        config = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
        return {"quantization_config": config, "dtype": torch.float16}
    width = dtype or torch.bfloat16
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=width
    )
    return {"quantization_config": config, "dtype": width}


def load_tokenizer(
    folder: Path, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of a model folder, with its chat template or the given one.

    Raises:
        SourceError: no readable tokenizer, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        there = any(folder.glob("tokenizer.*")) or any(folder.glob("*vocab*"))
        raise SourceError(
            f"The tokenizer in {folder} cannot be loaded",
            why=_first_line(error) if there else "its files are not there",
            next_step="Put the model's own tokenizer files beside its weights",
        ) from error
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise SourceError(
            f"{folder} has no chat template",
            why="it is a base model, or its tokenizer does not carry one",
            next_step="Use the chat version of the model",
        )
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
