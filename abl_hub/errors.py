"""The error tree. Knows how a refusal reads: what happened, why, and the next step, in one line.

    AblHubError
    ├── SourceError            a model or file that cannot be read as asked
    ├── ContrastError          prompt sets that cannot make a fair contrast
    ├── UnsupportedModelError  an architecture whose residual stream cannot be edited exactly
    ├── EditError              an edit that cannot be written, or that fails its own check
    ├── EvaluationError        a measurement that cannot be made
    ├── OutputError            a place that cannot be written to
    └── HubError               the Hub refused or could not be reached

Does not know the command line: rendering and exit codes belong to `abl_hub.cli`.
"""

from __future__ import annotations


class AblHubError(Exception):
    """A refusal with its reason.

    Args:
        what: what happened, a sentence without a full stop.
        why: the cause, where it is known.
        next_step: what the user can do now.
    """

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        self.what = what
        self.why = why
        self.next_step = next_step
        super().__init__(what, why, next_step)

    def __str__(self) -> str:
        sentence = f"{self.what}: {self.why}" if self.why else self.what
        sentence = sentence.rstrip(".") + "."
        if self.next_step:
            sentence += f" {self.next_step.rstrip('.')}."
        return " ".join(sentence.split())


class SourceError(AblHubError):
    """A model, a file or a folder that cannot be read as asked."""


class ContrastError(AblHubError):
    """Prompt sets that cannot make a fair contrast (empty, duplicated, overlapping, too few)."""


class UnsupportedModelError(AblHubError):
    """An architecture whose residual stream cannot be edited exactly."""


class EditError(AblHubError):
    """An edit that cannot be written, or that fails its own numeric check."""


class NoMergedFormError(EditError):
    """An edit that no checkpoint of this architecture can hold; its delta may."""


class NoDeltaError(EditError):
    """An edit of which no adapter can hold anything; a checkpoint may."""


class EvaluationError(AblHubError):
    """A measurement that cannot be made."""


class OutputError(AblHubError):
    """A place that cannot be written to (not empty, disk too small, no permission)."""


class HubError(AblHubError):
    """The Hub refused or could not be reached."""
