"""The metadata of a model card: built by huggingface_hub's own classes, checked without a network.

Knows fields and their values; not the text below them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.evaluate import Arm
from abl_hub.report.record import Record

Kind = Literal["merged", "delta"]

_RELATIONS = {"merged": "finetune", "delta": "adapter"}
_LIBRARIES = {"merged": "transformers", "delta": "peft"}
# Ids that the Hub lists, as far as models use them; "other" needs a name and a link.
_LICENCE_IDS = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research "
    "intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 "
    "openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license "
    "fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma "
    "grok2-community unknown other"
)
_LICENCES = frozenset(_LICENCE_IDS.split())
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def metadata(
    record: Record, kind: Kind, *, repo: str | None, gate_prompt: str | None = None
) -> dict[str, Any]:
    """Front matter of one card, checked."""
    evaluation = record.evaluation
    if evaluation is None:
        raise EvaluationError("The record has no evaluation", why="a card needs numbers")
    name = _line(repo or f"{record.source.name}-abliterated")
    data = ModelCardData(
        base_model=record.source.repo,
        library_name=_LIBRARIES[kind],
        license=record.source.licence,
        license_name=record.source.licence_name,
        license_link=record.source.licence_link,
        pipeline_tag="text-generation",
        tags=["abl-hub", "abliteration", "directional-ablation", _line(record.direction.behaviour)],
        model_name=name.rpartition("/")[2],
        eval_results=_results(record, evaluation.edited),
    )
    content: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    if record.source.repo is not None:
        content["base_model_relation"] = _RELATIONS[kind]
    if gate_prompt is not None:
        content["extra_gated_prompt"] = _line(gate_prompt)
    check_metadata(content)
    return content


def _results(record: Record, arm: Arm) -> list[EvalResult]:
    found = []
    behaviour = _line(record.direction.behaviour)

    def result(prompts: str, metric: str, name: str, value: float) -> None:
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=prompts,
                dataset_name=prompts,
                metric_type=metric,
                metric_name=name,
                metric_value=round(value, 6),
            )
        )

    if arm.positive is not None:
        shown = _line(record.positive.name)
        result(shown, "refusal_rate", f"{behaviour} rate", arm.positive.refused.value)
        result(shown, "non_answer_rate", "non-answer rate", arm.positive.non_answers.value)
    if arm.negative is not None:
        result(
            _line(record.negative.name),
            "refusal_rate",
            f"{behaviour} rate on prompts that the base answers",
            arm.negative.refused.value,
        )
    if arm.kl is not None:
        result(_line(record.negative.name), "kl_divergence", "KL(base, edited)", arm.kl.value)
    return found


def _line(text: str) -> str:
    """One line: a line break in a name could end the front matter."""
    return " ".join(text.split())


def check_metadata(content: Mapping[str, Any]) -> None:
    """Hold front matter against what the Hub accepts, offline.

    Raises:
        EvaluationError: a field that the Hub would reject or show wrongly, named.
    """
    licence = content.get("license")
    if licence is not None and licence not in _LICENCES:
        raise _wrong("license", f"{licence!r} is no licence id of the Hub")
    if licence == "other" and not (content.get("license_name") and content.get("license_link")):
        raise _wrong("license", "'other' needs license_name and license_link")
    base = content.get("base_model")
    if base is not None and not _REPO.fullmatch(str(base)):
        raise _wrong("base_model", f"{base!r} is no repository id")
    relation = content.get("base_model_relation")
    if (base is None) != (relation is None) or relation not in (None, *_RELATIONS.values()):
        raise _wrong("base_model_relation", f"{relation!r} with base_model {base!r}")
    if content.get("library_name") not in _LIBRARIES.values():
        raise _wrong("library_name", f"{content.get('library_name')!r}")
    if content.get("pipeline_tag") != "text-generation":
        raise _wrong("pipeline_tag", f"{content.get('pipeline_tag')!r}")
    prompt = content.get("extra_gated_prompt")
    if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
        raise _wrong("extra_gated_prompt", f"{prompt!r} is no text")
    for tag in content.get("tags", ()):
        if not isinstance(tag, str) or not tag.strip() or "\n" in tag:
            raise _wrong("tags", f"{tag!r} is no tag")


def _wrong(field: str, why: str) -> EvaluationError:
    return EvaluationError(f"The card's {field} would not be accepted", why=why)
