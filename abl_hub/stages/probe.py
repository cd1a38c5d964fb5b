"""What a suffix does to the direction: its projection by layer, and the heads that write it.

The analysis of adversarial suffixes of Arditi et al. 2024, section 5: a suffix that works moves
the projection of positive prompts towards that of negative ones, because heads that wrote the
direction look at the suffix instead. Prompts and suffix are read, never written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import MOST_SAMPLES, Samples, activations
from abl_hub.directions.selection import log_odds
from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.heads import attribute
from abl_hub.model.writers import Trace
from abl_hub.report.record import Detection, load_record
from abl_hub.stages.description import detection
from abl_hub.stages.extract import recorded_direction
from abl_hub.stages.inputs import load_recorded, recorded_prompts, recorded_source, recorded_trace
from abl_hub.stages.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set of prompts.

    Args:
        name: "positive", "positive + suffix", "negative".
        log_odds: of the behaviour's first tokens, mean.
        projections: mean projection on the direction by layer, at the prompt's last token.
        writes: "L3.H1" or "L3.mlp" → mean component that it writes along the direction there.
    """

    name: str
    log_odds: float
    projections: tuple[float, ...]
    writes: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Held-out prompts with and without a suffix.

    Args:
        rows: positive prompts, the same with the suffix, negative prompts.
        changed: the parts whose writes the suffix changes most: (name, without, with).
        detection: each layer's own difference in means as a detector, as `analyse` measures it:
            positive prompts without the suffix, and with it, against negative ones without.
    """

    rows: tuple[Row, ...]
    changed: tuple[tuple[str, float, float], ...]
    detection: tuple[tuple[Detection, ...], tuple[Detection, ...]]


def probe(out: Path, suffix: str, runtime: Runtime, *, most: int = 10) -> Probe:
    """Read the source of `out` on its test prompts (at most 256 a side), with and without `suffix`.

    Raises:
        SourceError, ContrastError: source or prompts have changed since `extract`.
    """
    record = load_record(out)
    direction = recorded_direction(record, out)
    contrast = recorded_prompts(record, runtime).contrast
    source = recorded_source(record, runtime)
    chat = load_recorded(source.folder, record, runtime)
    trace = recorded_trace(source, runtime)
    positive = contrast.positive.test[:MOST_SAMPLES]
    tokens = record.selection.behaviour_ids
    asked = {
        "positive": positive,
        "positive + suffix": tuple(f"{prompt} {suffix}" for prompt in positive),
        "negative": contrast.negative.test[:MOST_SAMPLES],
    }
    last = {name: _last(chat, prompts) for name, prompts in asked.items()}
    rows = tuple(
        _row(chat, trace, name, prompts, last[name], direction, tokens)
        for name, prompts in asked.items()
    )
    train = Samples(
        positive=_last(chat, contrast.positive.train), negative=_last(chat, contrast.negative.train)
    )
    plainly, moved = (
        detection(train, Samples(positive=last[name], negative=last["negative"]))
        for name in ("positive", "positive + suffix")
    )
    plain, suffixed = rows[0].writes, rows[1].writes
    order = sorted(plain, key=lambda name: -abs(suffixed.get(name, 0.0) - plain[name]))
    return Probe(
        rows=rows,
        changed=tuple((name, plain[name], suffixed.get(name, 0.0)) for name in order[:most]),
        detection=(plainly, moved),
    )


def _last(chat: ChatModel, prompts: Sequence[str]) -> torch.Tensor:
    """At the prompt's last token: (prompts, layers, 1, width)."""
    return activations(chat, prompts, positions=1)


def _row(
    chat: ChatModel,
    trace: Trace,
    name: str,
    prompts: tuple[str, ...],
    last: torch.Tensor,
    direction: Direction,
    tokens: tuple[int, ...],
) -> Row:
    sequences = [chat.prompt_tokens(prompt) for prompt in prompts]
    scores = log_odds(next_token_log_probs(chat, prompts), tokens)
    projections: torch.Tensor = (last[:, :, 0].double() @ direction.vector).mean(0)
    return Row(
        name=name,
        log_odds=float(scores.mean()),
        projections=tuple(projections.tolist()),
        writes=attribute(chat, trace, direction.vector, sequences),
    )
