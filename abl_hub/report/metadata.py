"""The front matter of a card, from the record: licence, base, relation, tags and results.

Built by huggingface_hub's own classes where it has some, and checked offline by
`abl_hub.report.schema`. Knows fields and their values; not the text below them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from huggingface_hub import EvalResult, ModelCardData

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Arm, Rates
from abl_hub.evaluation.intervals import Estimate
from abl_hub.evaluation.tasks import TaskScores
from abl_hub.report.licence_ids import LICENCE_IDS
from abl_hub.report.markdown import is_repo_id, one_line
from abl_hub.report.record import PromptsRecord, Record, SourceRecord
from abl_hub.report.schema import front_matter

Kind = Literal["merged", "delta", "direction"]
KINDS: tuple[Kind, ...] = ("merged", "delta", "direction")

_RELATIONS = {"merged": "finetune", "delta": "adapter"}
_LIBRARIES = {"merged": "transformers", "delta": "peft"}
_LONGEST_TAG = 60


def metadata(
    record: Record, kind: Kind, *, repo: str | None, gate_prompt: str | None = None
) -> str:
    """Front matter of one card as YAML, checked.

    Raises:
        EvaluationError: the record has no evaluation, or the Hub would not accept the result.
    """
    gate = {"extra_gated_prompt": one_line(gate_prompt)} if gate_prompt is not None else {}
    if kind == "direction":
        return front_matter({**_dataset_fields(record), **gate}, "dataset")
    return front_matter({**_model_fields(record, kind, repo), **gate}, "model")


def _model_fields(record: Record, kind: Kind, repo: str | None) -> dict[str, Any]:
    if record.evaluation is None:
        raise EvaluationError("The record has no evaluation", why="a card needs numbers")
    source = record.source
    way = "induced" if record.recipe.induce else "abliterated"
    data = ModelCardData(
        base_model=source.repo,
        base_model_relation=_RELATIONS[kind] if source.repo else None,
        library_name=_LIBRARIES[kind],
        pipeline_tag="text-generation",
        tags=_tags(record),
        datasets=_datasets(record),
        model_name=one_line(repo or f"{source.name}-{way}").rpartition("/")[2],
        eval_results=[
            *_results(record, record.evaluation.edited),
            *_task_results(record.evaluation.tasks),
        ],
        **licence_fields(source),
    )
    fields: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return fields


def _dataset_fields(record: Record) -> dict[str, Any]:
    name = one_line(record.source.repo or record.source.name).rstrip("/").rpartition("/")[2]
    return {
        "pretty_name": f"{one_line(record.direction.behaviour)} direction of {name}",
        **{key: value for key, value in licence_fields(record.source).items() if value},
        "tags": [*_tags(record), "steering-vector"],
        "size_categories": ["n<1K"],
        "viewer": False,  # the Hub shows rows, and this is one vector
    }


_ABLATION = ["abliteration", "directional-ablation"]


def _tags(record: Record) -> list[str]:
    behaviour = slug(record.direction.behaviour)
    way = ["activation-addition"] if record.recipe.induce else _ABLATION
    tags = ["abl-hub", *way, "interpretability", behaviour]
    return list(dict.fromkeys(tags))


def _datasets(record: Record) -> list[str] | None:
    """The prompt sets that are on the Hub."""
    sides = (record.positive, record.negative)
    parts = (
        part
        for side in sides
        if side.spec or side.revision
        for part in re.split(r" [+|] ", side.name)
    )
    names = [name for name in parts if is_repo_id(name)]
    return list(dict.fromkeys(names)) or None


def licence_fields(source: SourceRecord) -> dict[str, Any]:
    """The base's licence, in the Hub's terms: an id that it does not list is an "other" one."""
    ids = [one.strip().lower() for one in (source.licence or "").split(",") if one.strip()]
    if not ids:
        return {}
    link = _licence_link(source)
    if len(ids) == 1 and ids[0] in LICENCE_IDS - {"other"}:
        named = {"license_name": source.licence_name, "license_link": link}
        return {"license": ids[0], **(named if source.licence_name or source.licence_link else {})}
    if len(ids) > 1 and LICENCE_IDS - {"other"} >= set(ids):
        return {"license": ids}
    unlisted = "-and-".join(one for one in ids if one != "other")
    name = source.licence_name or unlisted or "as-the-base-model"
    return {"license": "other", "license_name": slug(name), "license_link": link}


def _licence_link(source: SourceRecord) -> str:
    """Where the licence can be read: a path of the base's repository means nothing in this one."""
    link = source.licence_link
    if link and urlsplit(link).scheme in ("http", "https"):
        return quote(one_line(link), safe=":/?#[]@!$&'()*+,;=%~")
    if link in source.licence_files:
        return quote(str(link))
    if source.repo is None:
        return quote(source.licence_files[0]) if source.licence_files else "README.md"
    base = f"https://huggingface.co/{source.repo}"
    return f"{base}/blob/{source.commit or 'main'}/{quote(link)}" if link else base


def _results(record: Record, arm: Arm) -> list[EvalResult]:
    behaviour = one_line(record.direction.behaviour)
    prefix = slug(behaviour).replace("-", "_")
    found: list[EvalResult] = []

    def add(dataset: Mapping[str, Any], metric: str, name: str, estimate: Estimate | None) -> None:
        # The Hub reads JSON, which has neither NaN nor infinity.
        if estimate is not None and math.isfinite(estimate.value):
            found.append(
                EvalResult(
                    task_type="text-generation",
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(estimate.value, 6),
                    **dataset,
                )
            )

    def rates(prompts: PromptsRecord, of: Rates | None, where: str) -> None:
        if of is not None:
            dataset = _dataset(prompts)
            add(dataset, f"{prefix}_rate", f"{behaviour} rate{where}", of.refused)
            add(dataset, "non_answer_rate", f"non-answer rate{where}", of.non_answers)

    rates(record.positive, arm.positive, "")
    rates(record.negative, arm.negative, " on other prompts")
    add(_dataset(record.negative), "kl_divergence", "KL(base, edited), nats a token", arm.kl)
    neutral = {"dataset_type": "abl-hub-neutral", "dataset_name": "neutral text in abl-hub"}
    add(neutral, "perplexity", "perplexity", arm.perplexity)
    return found


def _task_results(tasks: TaskScores | None) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=one_line(row.dataset or row.task),
            dataset_name=one_line(row.task),
            metric_type=one_line(row.metric),
            metric_name=one_line(f"{row.metric} ({row.filter})"),
            metric_value=round(row.after.value, 6),
        )
        for row in (tasks.shown if tasks is not None else ())
    ]


def _dataset(prompts: PromptsRecord) -> dict[str, Any]:
    name = one_line(prompts.name)
    if prompts.revision is None:
        return {"dataset_type": slug(name), "dataset_name": f"{name}, held-out part"}
    return {
        "dataset_type": name,
        "dataset_name": f"{name}, held-out part",
        "dataset_split": prompts.split and one_line(prompts.split),
        "dataset_revision": one_line(prompts.revision),
    }


def slug(text: str) -> str:
    """Lower-case words and hyphens, as tags are."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:_LONGEST_TAG] or "unnamed"
