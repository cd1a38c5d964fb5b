"""Reads what lm-eval answers: nested dictionaries, keyed by "metric,filter".

Knows their form; asks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from abl_hub.evaluation.tasks import Score, Tasks, TaskScore, TaskScores

_STDERR = "_stderr"


def read_scores(
    asked: Tasks,
    digests: Mapping[str, str],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> TaskScores:
    """Every metric that is a number in both of lm-eval's answers.

    Args:
        digests: task → SHA-256 of its questions.
        before: lm-eval's answer for the base; `after` likewise.
    """
    rows = []
    found, again = before["results"], after["results"]
    parents = {
        child: group
        for group, children in before["group_subtasks"].items()
        for child in children
        if any("," in key for key in found.get(group, {}))
    }
    for task, metrics in found.items():
        config = before["configs"].get(task, {})
        for key in metrics:
            metric, _, filtered = key.partition(",")
            old, new = _score(metrics, key), _score(again[task], key)
            if not filtered or metric.endswith(_STDERR) or old is None or new is None:
                continue
            rows.append(
                TaskScore(
                    task=task,
                    metric=metric,
                    filter=filtered,
                    version=_text(before["versions"].get(task)),
                    dataset=_dataset(config),
                    digest=digests.get(task),
                    shots=before["n-shot"].get(task),
                    count=int(metrics["sample_len"]),
                    higher_is_better=before["higher_is_better"].get(task, {}).get(metric),
                    part_of=parents.get(task),
                    before=old,
                    after=new,
                )
            )
    return TaskScores(
        lm_eval=version("lm-eval"),
        limit=asked.limit,
        chat_template=asked.chat_template,
        scores=tuple(rows),
    )


def _score(metrics: Mapping[str, Any], key: str) -> Score | None:
    """A metric that is a number; lm-eval writes "N/A" for a standard error that it cannot give."""
    value = _number(metrics[key])
    if value is None:
        return None
    return Score(value=value, stderr=_number(metrics.get(key.replace(",", f"{_STDERR},", 1))))


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _dataset(config: Mapping[str, Any]) -> str | None:
    if "data_files" in (config.get("dataset_kwargs") or {}):
        return None
    names = [str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key)]
    return "/".join(names) or None
