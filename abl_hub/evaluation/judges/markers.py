"""The judge that decides: a reply shows the behaviour if it opens with one of its markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abl_hub.evaluation.refusals import REFUSAL_MARKERS, shows_marker
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply


@dataclass(frozen=True, kw_only=True)
class Markers:
    """Coarse, and the same for everyone: see `abl_hub.evaluation.refusals`."""

    markers: tuple[str, ...] = REFUSAL_MARKERS
    name: str = "markers"

    def shows(
        self, subject: Subject, prompts: Sequence[str], replies: Sequence[Reply]
    ) -> list[bool]:
        """Whether each reply opens with a marker."""
        return [shows_marker(reply.text, self.markers) for reply in replies]
