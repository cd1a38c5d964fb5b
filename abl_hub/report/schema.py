"""What the Hub accepts as front matter of a model, a dataset or a Space, checked offline.

A schema of our own: the Hub's, narrowed to the fields that our cards use. Knows no record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from abl_hub.errors import EvaluationError
from abl_hub.report.licence_ids import LICENCE_IDS
from abl_hub.report.markdown import is_repo_id, one_line

RepoType = Literal["model", "dataset", "space"]

_COLOURS = Literal["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
_WEB = re.compile(r"https?://\S+")
_BESIDE = re.compile(r"[^/:\s][^:\s]*")  # a file of the same repository


def _licence_id(value: str) -> str:
    if value not in LICENCE_IDS:
        raise ValueError(f"{value!r} is no licence id of the Hub")
    return value


def _repo_id(value: str) -> str:
    if not is_repo_id(value):
        raise ValueError(f"{value!r} is no repository id")
    return value


def _one_line(value: str) -> str:
    if not value.strip() or value != one_line(value):
        raise ValueError(f"{value!r} is not one line of text")
    return value


def _link(value: str) -> str:
    if not _WEB.fullmatch(value) and (not _BESIDE.fullmatch(value) or ".." in value):
        raise ValueError(f"{value!r} is neither an address nor a file beside the card")
    return value


def _unique(values: list[str]) -> list[str]:
    if len(set(values)) != len(values):
        raise ValueError("something is listed twice")
    return values


LicenceId = Annotated[str, AfterValidator(_licence_id)]
RepoId = Annotated[str, AfterValidator(_repo_id)]
Line = Annotated[str, AfterValidator(_one_line)]
# ISO 639-1 or 639-3, with a region or script where it matters.
Language = Annotated[str, Field(pattern=r"^([a-z]{2,3}(-[A-Za-z]{2,4})?|multilingual)$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class _Front(_Closed):
    license: LicenceId | Annotated[list[LicenceId], Field(min_length=1)] | None = None
    license_name: Line | None = Field(default=None, validate_default=True)
    license_link: Annotated[str, AfterValidator(_link)] | None = Field(
        default=None, validate_default=True
    )
    tags: Annotated[list[Line], AfterValidator(_unique)] = []
    language: Language | list[Language] | None = None
    extra_gated_prompt: Line | None = None

    @field_validator("license_name", "license_link")
    @classmethod
    def _needed_by_other(cls, value: str | None, info: ValidationInfo) -> str | None:
        licence = info.data.get("license")
        if value is None and "other" in ([licence] if isinstance(licence, str) else licence or []):
            raise ValueError("licence 'other' needs it")
        return value


class _Typed(_Closed):
    type: Line
    name: Line | None = None


class _Dataset(_Closed):
    type: Line
    name: Line
    config: Line | None = None
    split: Line | None = None
    revision: Line | None = None


class _Metric(_Closed):
    type: Line
    name: Line | None = None
    value: FiniteFloat  # the Hub reads JSON, which has neither NaN nor infinity


class _Result(_Closed):
    task: _Typed
    dataset: _Dataset
    metrics: Annotated[list[_Metric], Field(min_length=1)]


class _Results(_Closed):
    name: Line
    results: Annotated[list[_Result], Field(min_length=1)]


class ModelFront(_Front):
    """Front matter of a merged model or a delta."""

    base_model: RepoId | None = None
    base_model_relation: Literal["finetune", "adapter"] | None = Field(
        default=None, validate_default=True
    )
    library_name: Literal["transformers", "peft"]
    pipeline_tag: Literal["text-generation"]
    datasets: list[RepoId] | None = None
    model_index: list[_Results] = Field(default=[], alias="model-index")

    @field_validator("base_model_relation")
    @classmethod
    def _with_base(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) != (info.data.get("base_model") is None):
            raise ValueError("it and base_model stand together")
        return value


class DatasetFront(_Front):
    """Front matter of a direction, published as a dataset of one vector."""

    pretty_name: Line
    size_categories: list[Literal["n<1K"]]
    viewer: Literal[False]


class SpaceFront(_Front):
    """Front matter of a Space."""

    title: Line
    emoji: Annotated[str, Field(min_length=1, max_length=4)]
    colorFrom: _COLOURS
    colorTo: _COLOURS
    sdk: Literal["gradio"]
    sdk_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    python_version: Annotated[str, Field(pattern=r"^3\.\d+$")] | None = None
    app_file: Line
    short_description: Annotated[Line, Field(max_length=60)]
    models: list[RepoId]


_SCHEMAS: Mapping[RepoType, type[BaseModel]] = {
    "model": ModelFront,
    "dataset": DatasetFront,
    "space": SpaceFront,
}


def front_matter(content: Mapping[str, Any], repo_type: RepoType) -> str:
    """`content` as YAML, checked.

    Raises:
        EvaluationError: a field that the Hub would reject or show wrongly, named; or YAML that
            does not give back what was written.
    """
    try:
        _SCHEMAS[repo_type].model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        raise EvaluationError(
            f"The card's {first['loc'][0]} would not be accepted", why=f"{where}: {first['msg']}"
        ) from error
    written = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=1000)
    if yaml.safe_load(written) != content:
        raise EvaluationError(
            "The card's front matter would not be accepted",
            why="YAML does not give back what was written",
        )
    return str(written)
