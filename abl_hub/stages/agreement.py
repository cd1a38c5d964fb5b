"""Whether the three forms of one edit say the same: on real prompts, or on their files.

Knows forms that are written already; neither how, nor what for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from abl_hub.edits.checkpoint_check import check_checkpoint
from abl_hub.edits.edit import Edit
from abl_hub.edits.peft_skeleton import quiet_about_biases
from abl_hub.errors import EditError
from abl_hub.model.chat import ChatModel
from abl_hub.model.check import residual, residual_limit
from abl_hub.model.divergence import apart
from abl_hub.model.generate import continuations, greedy_replies, next_token_logits
from abl_hub.model.meta import meta_model
from abl_hub.model.teacher_forcing import Continuation, divergences, log_probs
from abl_hub.report.record import AgreementRecord, Record
from abl_hub.stages.forms import MERGED
from abl_hub.stages.inputs import load_recorded
from abl_hub.stages.runtime import Runtime

_REPLY_TOKENS = 16


def compare_forms(
    active: Callable[[Any], AbstractContextManager[None]],
    along: torch.Tensor | None,
    source: Path,
    out: Path,
    deltas: Sequence[Path],
    prompts: Sequence[str],
    record: Record,
    runtime: Runtime,
    *,
    whole: bool,
    narrow: bool,
) -> tuple[AgreementRecord, ...]:
    """Base, hooks, each delta and merged on real prompts, one model at a time.

    Next-token logits of all, and how likely hooks and delta find the replies under the hooks. Where
    there is no merged model, what is left along the directions is measured under the hooks.

    Args:
        active: runs a model as if it were edited.
        along: (k, width), the directions whose component is measured; None where the edit removes
            none.
        deltas: folders of adapters; there is a record of each, or one of no delta. Those that store
            biases whole come first.
        whole: the edit removes them at strength 1 everywhere.
        narrow: weights or computation are in 16 bits.

    Raises:
        EditError: `whole`, and more than rounding is left along them.
    """
    load = partial(load_recorded, record=record, runtime=runtime)

    def left_along(chat: ChatModel) -> float | None:
        if along is None:
            return None
        tokens = ([chat.prompt_tokens(prompt)] for prompt in prompts)
        return max(
            residual(chat.model, torch.tensor(one, device=chat.device), along) for one in tokens
        )

    with runtime.progress.stage("Comparing hooks, delta and merged", 3 + len(deltas)) as advance:
        chat = load(source)
        with active(chat.model):
            hooks, left = next_token_logits(chat, prompts), left_along(chat)
            replies = greedy_replies(chat, prompts, max_new_tokens=_REPLY_TOKENS)
            sequences = continuations(chat, prompts, replies)
            likely = [table.cpu() for _, table in log_probs(chat, sequences)]
        dtype = chat.model.dtype
        advance(1)
        base, edit_kl = next_token_logits(chat, prompts), _kl(likely, chat, sequences)
        advance(1)
        measured: list[tuple[torch.Tensor | None, float | None]] = []
        # The last one first: unload() leaves biases that an adapter stores whole in the model, and
        # a portable delta, which has none, comes last.
        for folder in reversed(deltas):
            with quiet_about_biases():
                wrapped = PeftModel.from_pretrained(chat.model, str(folder))
            adapted = replace(chat, model=wrapped)
            kl = _kl(likely, adapted, sequences)
            measured.insert(0, (next_token_logits(adapted, prompts), kl))
            wrapped.unload()
            advance(1)
            del wrapped, adapted
        del chat
        merged = None
        if (out / MERGED).is_dir():
            chat = load(out / MERGED)
            merged, left = next_token_logits(chat, prompts), left_along(chat)
        advance(1)
    # Of weights that are stored in 16 bits, as much is left as their rounding leaves, in whatever
    # format they are measured.
    limit = residual_limit(torch.bfloat16 if narrow else dtype)
    if whole and left is not None and left > limit:
        raise EditError(
            "The edited model fails its own check",
            why=f"{left:.1e} of the stream still lies along the direction (limit {limit:.0e})",
            next_step="Nothing was written; report the architecture",
        )
    return tuple(
        AgreementRecord(
            prompts=len(prompts),
            hooks_merged=_apart(hooks, merged),
            hooks_delta=_apart(hooks, delta),
            merged_delta=_apart(merged, delta),
            base_hooks=_apart(base, hooks),
            delta_kl=kl,
            edit_kl=edit_kl,
            residual=left,
        )
        for delta, kl in measured or [(None, None)]
    )


def checked_weights(edit: Edit, merged: Path, runtime: Runtime) -> AgreementRecord:
    """What can be said without loading a model. The delta's keys were compared when it was
    written, and its factors are products of the very weights."""
    if not merged.is_dir():
        return AgreementRecord(prompts=0)
    blueprint = meta_model(merged, trust_remote_code=runtime.trust_remote_code)
    return AgreementRecord(prompts=0, weights=check_checkpoint(edit, merged, model=blueprint))


def refuse_disagreement(
    agreement: AgreementRecord, *, merged_is_whole: bool, delta_is_whole: bool, narrow: bool
) -> None:
    """Forms of one edit may differ by rounding, which is small beside what the edit does.

    Args:
        narrow: weights or computation are in 16 bits.

    Raises:
        EditError: a form that holds the whole edit differs by more.
    """
    if agreement.delta_kl is not None and not math.isfinite(agreement.delta_kl):
        raise EditError(
            "The delta leaves the model's outputs not finite",
            next_step="Try --dtype float32 or bfloat16",
        )
    # Weights in 16 bits round each write by 2⁻⁸ of itself; in 32 bits next to nothing is lost.
    change = agreement.base_hooks or 0.0
    limit = 0.1 + 0.25 * change if narrow else 1e-3 + 0.01 * change
    for name, differs, whole in (
        ("merged model", agreement.hooks_merged, merged_is_whole),
        ("delta", agreement.hooks_delta, delta_is_whole),
    ):
        if whole and differs is not None and not differs <= limit:
            raise EditError(
                f"The {name} is not the edit that was asked for",
                why=f"its logits differ from the runtime form's by {differs:.1e}, rounding "
                f"explains at most {limit:.1e}",
                next_step="Nothing was written; report the architecture",
            )


def _kl(
    likely: Sequence[torch.Tensor], chat: ChatModel, sequences: Sequence[Continuation]
) -> float:
    """KL(likely ‖ `chat`), nats a token: the mean over each reply's tokens, then over replies."""
    each = [nats.mean() for nats in divergences(likely, chat, sequences)]
    # Not max(0, …), which makes 0 of NaN.
    return float(torch.stack(each).mean().clamp_min(0.0)) if each else 0.0


def _apart(one: torch.Tensor | None, other: torch.Tensor | None) -> float | None:
    return None if one is None or other is None else apart(one, other)
