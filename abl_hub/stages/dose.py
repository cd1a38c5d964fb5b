"""Dose response: whole replies to validation prompts over the strength of an edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.direction import Direction
from abl_hub.edits.edit import Gains
from abl_hub.edits.hooks import prepared
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.raising import raising_trial, showing
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Trial, baseline, trial
from abl_hub.model.chat import ChatModel
from abl_hub.model.stream import adding
from abl_hub.model.writers import Trace
from abl_hub.report.record import Dose, Record
from abl_hub.stages.edit import recorded_edit


def dose_response(
    chat: ChatModel,
    contrast: Contrast,
    direction: Direction,
    trace: Trace,
    between: Gains,
    record: Record,
    protocol: Protocol,
    doses: Sequence[float],
    advance: Callable[[int], None],
) -> tuple[Dose, ...]:
    """Replies to validation prompts at every strength, through the runtime form."""
    base = Subject(chat=chat)
    sides = contrast.positive.validation, contrast.negative.validation

    def removed() -> Callable[[float], Trial]:
        against = baseline(base, *sides, protocol=protocol)
        edit = recorded_edit(record, direction, trace)

        def at(dose: float) -> Trial:
            strengths = tuple(dose * strength for strength in edit.strengths)
            active = prepared(replace(edit, strengths=strengths), chat.model, between)
            return trial(against, Subject(chat=chat, active=active))

        return at

    def added() -> Callable[[float], Trial]:
        against = showing(base, *sides, protocol=protocol)
        whole = record.recipe.strength * direction.addition

        def at(dose: float) -> Trial:
            active = partial(adding, chat.layers, direction.layer, dose * whole)
            return raising_trial(against, Subject(chat=chat, active=active))

        return at

    tried = added() if record.recipe.induce else removed()
    found = []
    for dose in sorted(doses):
        outcome = tried(dose)
        found.append(
            Dose(strength=dose, failures=outcome.failures, damage=outcome.damage, kl=outcome.kl)
        )
        advance(1)
    return tuple(found)
