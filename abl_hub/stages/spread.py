"""Whether one direction is enough: whole replies to a few validation prompts, without what is
edited, and, only where that is not enough, without one other direction and without several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain

import torch

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.direction import Direction
from abl_hub.directions.methods.successive import successive
from abl_hub.edits.edit import Edit, Gains, remove
from abl_hub.edits.hooks import prepared
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.spread import How, Reading, Removal, Told, apart, enough, tell
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Baseline, Judged, baseline
from abl_hub.model.chat import ChatModel
from abl_hub.model.writers import Trace

ASKED = 16
"""Validation prompts a side."""

_LAYERS = 3
MOST_DIRECTIONS = 5

_Tried = tuple[How, int, torch.Tensor]
"""How they were found, at which layer, and what is removed, (k, width)."""


def look_for_spread(
    chat: ChatModel,
    contrast: Contrast,
    direction: Direction,
    edit: Edit,
    alone: Mapping[int, torch.Tensor],
    singular: torch.Tensor,
    trace: Trace,
    between: Gains,
    protocol: Protocol,
    reading: Reading,
) -> tuple[tuple[Removal, ...], Told]:
    """What was removed, each with what it left, and what the rule says of it.

    Args:
        edit: as it is written, at its strengths.
        alone: layer → its projected difference in means (width,), that whose removal leaves least
            of the behaviour's first tokens first.
        singular: directions of the paired differences at the edited direction's layer,
            (k, width), largest first.
    """
    against = baseline(
        Subject(chat=chat),
        contrast.positive.validation[:ASKED],
        contrast.negative.validation[:ASKED],
        protocol=protocol,
    )
    trying = _trying(against, between)
    base = _unedited(against)
    layer = direction.layer
    tried = [base, trying("edit", edit, direction.rank, layer)]
    if apart(base) and (direction.rank > 1 or not enough(base, tried[1])):
        layers = list(dict.fromkeys([*list(alone)[:_LAYERS], layer]))
        singles: Iterator[_Tried] = (
            ("single", at, alone[at][None]) for at in layers if at in alone
        )
        for how, at, rows in chain(singles, _growing(chat, contrast, layers, layer, singular)):
            if any(enough(base, one) for one in tried[2:]):
                break
            if how != "single" and enough(base, tried[1]):
                break
            tried.append(trying(how, remove(rows, trace.writers), len(rows), at))
    return tuple(tried), tell(tried, reading)


def _growing(
    chat: ChatModel,
    contrast: Contrast,
    layers: Sequence[int],
    layer: int,
    singular: torch.Tensor,
) -> Iterator[_Tried]:
    """2 directions of each kind, then 3, and so on."""

    @cache
    def one_after_the_other(at: int) -> torch.Tensor:
        return successive(chat, contrast, at, MOST_DIRECTIONS)

    for count in range(2, MOST_DIRECTIONS + 1):
        for at in layers:
            if len(one_after_the_other(at)) >= count:
                yield "successive", at, one_after_the_other(at)[:count]
        if len(singular) >= count:
            yield "singular", layer, singular[:count]


def _unedited(against: Baseline) -> Removal:
    positive = against.failures(against.subject)
    return _removal("none", 0, 0, positive, against.ordinary)


def _trying(against: Baseline, between: Gains) -> Callable[[How, Edit, int, int], Removal]:
    chat = against.subject.chat

    def trying(how: How, edit: Edit, directions: int, layer: int) -> Removal:
        edited = Subject(chat=chat, active=prepared(edit, chat.model, between))
        return _removal(how, directions, layer, against.failures(edited), against.damage(edited))

    return trying


def _removal(how: How, directions: int, layer: int, positive: Judged, negative: Judged) -> Removal:
    return Removal(
        how=how,
        directions=directions,
        layer=layer,
        shown=positive.shown,
        non_answers=positive.share - positive.shown,
        damage=negative.share,
    )
