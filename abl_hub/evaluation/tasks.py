"""Tasks of lm-evaluation-harness: what is asked, and what was measured before and after.

Values only; how lm-eval is asked is `abl_hub.evaluation.harness`'s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What lm-eval is asked for.

    Args:
        names: of tasks, groups or tags, as lm-eval calls them.
        path: folder of further tasks, as YAML.
        limit: only the first so many questions of each task.
        chat_template: ask through the chat template; otherwise as lm-eval does by default, without.
    """

    names: tuple[str, ...]
    path: str | None = None
    limit: int | None = None
    chat_template: bool = False


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value and its standard error, where lm-eval gives one."""

    value: float
    stderr: float | None

    def __str__(self) -> str:
        parts = [part for part in (self.value, self.stderr) if part is not None]
        return " ± ".join(f"{part:.4f}" if abs(part) < 10 else f"{part:.4g}" for part in parts)


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task or group, before and after.

    Args:
        filter: what lm-eval did to a reply before it was compared; "none" where nothing.
        version: the task's own.
        dataset: id of the data set; None for a group and for files on this machine.
        digest: SHA-256 of the questions that were asked, in their order; None for a group.
        shots: worked examples before each question.
        count: questions that were asked.
        part_of: the group whose own score counts this one in.
    """

    task: str
    metric: str
    filter: str
    version: str | None
    dataset: str | None
    digest: str | None
    shots: int | None
    count: int
    higher_is_better: bool | None
    part_of: str | None
    before: Score
    after: Score

    @property
    def label(self) -> str:
        """The metric as people read it: its filter where there is one, and which way is better."""
        filtered = "" if self.filter == "none" else f" ({self.filter})"
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.metric}{filtered}{arrow}"


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Everything that lm-eval measured.

    Args:
        lm_eval: version of lm-eval.
    """

    lm_eval: str
    limit: int | None
    chat_template: bool
    scores: tuple[TaskScore, ...]

    @property
    def setting(self) -> str:
        """How it was measured, in words."""
        asked = "through the chat template" if self.chat_template else "without chat template"
        limit = "" if self.limit is None else f", the first {self.limit} questions of each task"
        return f"lm-eval {self.lm_eval}, {asked}{limit}; ± one standard error"

    @property
    def shown(self) -> tuple[TaskScore, ...]:
        """Without what a group's score counts in: MMLU is one line, not 57."""
        return tuple(score for score in self.scores if score.part_of is None)
