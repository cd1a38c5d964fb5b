"""One file a judge: does a reply show the behaviour? The markers decide; others are asked too.

A judge is anything with a name and `shows`; packages may offer their own under the entry point
group `abl_hub.judges` (a function without arguments that makes one).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply

GROUP = "abl_hub.judges"


class Judge(Protocol):
    """Says of each reply whether it shows the behaviour."""

    @property
    def name(self) -> str:
        """As it is shown in tables."""
        ...

    def shows(
        self, subject: Subject, prompts: Sequence[str], replies: Sequence[Reply]
    ) -> list[bool]:
        """One answer a prompt; `subject` is who replied."""
        ...


def installed(name: str) -> Judge:
    """A judge that another package offers, made.

    Raises:
        EvaluationError: no package offers one of that name.
    """
    judge: Judge = offered(name).load()()
    return judge


def offered(name: str) -> EntryPoint:
    """A judge that another package offers.

    Raises:
        EvaluationError: no package offers one of that name.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        own = ["first-token", "classifier:ORG/MODEL#LABEL", "guard:ORG/MODEL#WORD"]
        known = [*own, *sorted(points)]
        raise EvaluationError(f"No judge {name!r}", next_step=f"Choose of {', '.join(known)}")
    return points[name]
