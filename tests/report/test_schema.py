"""Front matter is checked offline: what the Hub would reject is named, what it accepts survives."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from abl_hub.errors import EvaluationError
from abl_hub.report.schema import RepoType, front_matter

GOOD: dict[RepoType, dict[str, Any]] = {
    "model": {
        "license": "mit",
        "base_model": "org/model",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["a"],
        "language": ["en", "zh-Hant"],
    },
    "dataset": {
        "license": ["mit", "apache-2.0"],
        "pretty_name": "A direction",
        "size_categories": ["n<1K"],
        "viewer": False,
    },
    "space": {
        "title": "Before and after",
        "emoji": "🔀",
        "colorFrom": "gray",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": "6.31.0",
        "app_file": "app.py",
        "short_description": "Short",
        "models": ["org/model"],
    },
}


@pytest.mark.parametrize(
    ("repo_type", "change", "field"),
    [
        ("model", {"license": "freeware"}, "license"),
        ("model", {"license": []}, "license"),
        ("model", {"license": "other"}, "license_name"),
        ("model", {"license": "other", "license_name": "x"}, "license_link"),
        ("model", {"license_link": "javascript:alert(1)"}, "license_link"),
        ("model", {"license_link": "../LICENSE"}, "license_link"),
        ("model", {"base_model": "not a repo"}, "base_model"),
        ("model", {"base_model_relation": "child"}, "base_model_relation"),
        ("model", {"base_model_relation": None}, "base_model_relation"),
        ("model", {"library_name": "numpy"}, "library_name"),
        ("model", {"pipeline_tag": None}, "pipeline_tag"),
        ("model", {"tags": ["a\nb"]}, "tags"),
        ("model", {"tags": ["a", "a"]}, "tags"),
        ("model", {"language": "English"}, "language"),
        ("model", {"datasets": ["not a repo"]}, "datasets"),
        ("model", {"colour": "red"}, "colour"),
        ("model", {"model-index": [{"name": "x", "results": []}]}, "model-index"),
        ("dataset", {"viewer": "no"}, "viewer"),
        ("dataset", {"pretty_name": ""}, "pretty_name"),
        ("dataset", {"pipeline_tag": "text-generation"}, "pipeline_tag"),
        ("space", {"colorTo": "teal"}, "colorTo"),
        ("space", {"sdk": "docker"}, "sdk"),
        ("space", {"sdk_version": "6"}, "sdk_version"),
        ("space", {"short_description": "x" * 61}, "short_description"),
        ("space", {"models": ["a path/x"]}, "models"),
    ],
)
def test_what_the_hub_would_reject(
    repo_type: RepoType, change: dict[str, object], field: str
) -> None:
    good = GOOD[repo_type]
    assert yaml.safe_load(front_matter(good, repo_type)) == good
    with pytest.raises(EvaluationError, match=f"card's {field} "):
        front_matter({**good, **change}, repo_type)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5"])
def test_a_result_is_a_finite_number(value: object) -> None:
    result = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "x", "name": "x"},
        "metrics": [{"type": "kl", "value": 0.5}],
    }
    index = [{"name": "x", "results": [result]}]
    front_matter({**GOOD["model"], "model-index": index}, "model")
    result["metrics"] = [{"type": "kl", "value": value}]
    with pytest.raises(EvaluationError, match="model-index"):
        front_matter({**GOOD["model"], "model-index": index}, "model")
