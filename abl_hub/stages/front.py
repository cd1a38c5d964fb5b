"""The fitted front by whole replies to validation prompts: every point, and one strength beside it.

The choice of a point judged those that it needed; this is for readers, and changes no choice.
"""

from __future__ import annotations

from collections.abc import Callable

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.direction import Direction
from abl_hub.edits.edit import Gains
from abl_hub.edits.hooks import prepared
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Judged, baseline
from abl_hub.model.chat import ChatModel
from abl_hub.model.writers import Trace
from abl_hub.report.record import FrontPoint, Record
from abl_hub.stages.edit import asked_edit, scaled
from abl_hub.strengths.groups import groups


def front_points(record: Record) -> tuple[int | None, ...]:
    """What there is to judge: one strength (None), then the fitted points by rising weight of KL.

    Nothing where nothing was fitted, or where another direction than the fitted one was taken, at
    one strength: `convert` keeps the vector of one direction.
    """
    strengths = record.strengths
    if strengths is None:
        return ()
    if strengths.chosen is None and strengths.direction != record.direction.digest:
        return ()
    fitted = [at for at, one in enumerate(strengths.points) if one.kl_weight is not None]
    return (None, *fitted) if fitted else ()


def judged_front(
    chat: ChatModel,
    contrast: Contrast,
    direction: Direction,
    trace: Trace,
    between: Gains,
    record: Record,
    protocol: Protocol,
    advance: Callable[[int], None],
) -> tuple[FrontPoint, ...]:
    """Replies to validation prompts at every point, through the runtime form.

    Each point's replies to positive prompts are the next one's drafts.
    """
    points = front_points(record)
    if record.strengths is None or not points:
        return ()
    against = baseline(
        Subject(chat=chat),
        contrast.positive.validation,
        contrast.negative.validation,
        protocol=protocol,
    )
    edit, names = asked_edit(record.recipe, direction, trace), groups(trace)
    found: list[FrontPoint] = []
    failures: Judged | None = None
    for point in points:
        strengths = {} if point is None else record.strengths.points[point].strengths
        strong = scaled(edit, names, strengths)
        edited = Subject(chat=chat, active=prepared(strong, chat.model, between))
        failures = against.failures(edited, like=failures)
        found.append(
            FrontPoint(
                point=point,
                failures=failures.rate,
                damage=against.damage(edited).rate,
                kl=against.kl(edited),
            )
        )
        advance(1)
    return tuple(found)
