"""The judges and the protocol that a recipe names, made ready; classifiers and guards come from
the Hub."""

from __future__ import annotations

import re

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.judges import Judge, installed, offered
from abl_hub.evaluation.judges.classifier import Classifier, check_class
from abl_hub.evaluation.judges.first_token import FirstToken
from abl_hub.evaluation.judges.guard import Guard
from abl_hub.evaluation.judges.shown import check_template
from abl_hub.evaluation.refusals import REFUSAL_MARKERS
from abl_hub.hub.source import plan_source, resolve_source
from abl_hub.report.recipe import Recipe
from abl_hub.stages.runtime import Runtime

_FIRST_TOKEN = "first-token"
_KINDS = ("classifier:", "guard:")
_MODEL = re.compile(
    r"(?P<kind>classifier|guard):(?P<name>[^@#]+)(@(?P<revision>[^#]+))?"
    r"#\s*(?P<label>\S.*?)\s*"
)


def protocol_of(recipe: Recipe, runtime: Runtime) -> Protocol:
    """How replies are made and judged, as the recipe asks."""
    return Protocol(
        max_new_tokens=recipe.max_new_tokens,
        markers=recipe.markers or REFUSAL_MARKERS,
        rows=runtime.rows,
    )


def judges_of(recipe: Recipe, behaviour_ids: tuple[int, ...], runtime: Runtime) -> list[Judge]:
    """The judges that are asked besides the markers.

    Raises:
        EvaluationError: there is no such judge.
        SourceError, HubError: the classifier is not there.
    """
    return [_judge(spec, behaviour_ids, recipe.judge_template, runtime) for spec in recipe.judges]


def check_judges(recipe: Recipe, runtime: Runtime) -> None:
    """Refuse what `judges_of` would; of a model, only the configuration is fetched.

    Raises:
        EvaluationError, SourceError, HubError: as `judges_of`.
    """
    if recipe.judge_template is not None:
        check_template(recipe.judge_template)
        if not any(spec.startswith(_KINDS) for spec in recipe.judges):
            raise EvaluationError(
                "No judge is shown the template",
                why="markers and first tokens are not asked in words",
                next_step="Name one with --judge classifier:… or guard:…, or drop --judge-template",
            )
    for spec in recipe.judges:
        if spec.startswith(_KINDS):
            kind, name, revision, label = _model(spec)
            plan = plan_source(
                name,
                revision=revision,
                token=runtime.token,
                endpoint=runtime.endpoint,
                cache_dir=runtime.cache_dir,
            )
            if kind == "classifier":
                check_class(plan.config_folder, label, name=name)
        elif spec != _FIRST_TOKEN:
            offered(spec)


def _judge(
    spec: str, behaviour_ids: tuple[int, ...], template: str | None, runtime: Runtime
) -> Judge:
    if spec == _FIRST_TOKEN:
        return FirstToken(tokens=behaviour_ids)
    if not spec.startswith(_KINDS):
        return installed(spec)
    kind, name, revision, label = _model(spec)
    source = resolve_source(
        name,
        revision=revision,
        token=runtime.token,
        endpoint=runtime.endpoint,
        cache_dir=runtime.cache_dir,
        progress=runtime.progress,
    )
    shown = f"{source.repo or source.folder.name}#{label}"
    if kind == "guard":
        device = "cpu" if runtime.device == "auto" else runtime.device
        return Guard(
            source.folder, label, name=shown, device=device, template=template, rows=runtime.rows
        )
    return Classifier(source.folder, label, name=shown, template=template, rows=runtime.rows)


def _model(spec: str) -> tuple[str, str, str | None, str]:
    """Kind, name, revision and label."""
    found = _MODEL.fullmatch(spec)
    if found is None:
        kind = spec.partition(":")[0]
        words = "LABEL, the class" if kind == "classifier" else "WORD, what its verdict begins with"
        raise EvaluationError(
            f"{spec!r} names no {kind}",
            next_step=f"Write {kind}:ORG/MODEL#{words} where a reply shows the behaviour",
        )
    return found["kind"], found["name"], found["revision"], found["label"]
