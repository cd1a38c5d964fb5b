"""The judges and the protocol that a recipe names, made ready; classifiers come from the Hub."""

from __future__ import annotations

import re

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.judges import Judge, installed, offered
from abl_hub.evaluation.judges.classifier import Classifier, check_class
from abl_hub.evaluation.judges.first_token import FirstToken
from abl_hub.evaluation.refusals import REFUSAL_MARKERS
from abl_hub.hub.source import plan_source, resolve_source
from abl_hub.report.recipe import Recipe
from abl_hub.stages.runtime import Runtime

_FIRST_TOKEN = "first-token"
_CLASSIFIER = re.compile(r"classifier:(?P<name>[^@#]+)(@(?P<revision>[^#]+))?#(?P<label>.+)")


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
    return [_judge(spec, behaviour_ids, runtime) for spec in recipe.judges]


def check_judges(recipe: Recipe, runtime: Runtime) -> None:
    """Refuse what `judges_of` would; of a classifier, only the configuration is fetched.

    Raises:
        EvaluationError, SourceError, HubError: as `judges_of`.
    """
    for spec in recipe.judges:
        if spec.startswith("classifier:"):
            name, revision, label = _classifier(spec)
            plan = plan_source(
                name,
                revision=revision,
                token=runtime.token,
                endpoint=runtime.endpoint,
                cache_dir=runtime.cache_dir,
            )
            check_class(plan.config_folder, label, name=name)
        elif spec != _FIRST_TOKEN:
            offered(spec)


def _judge(spec: str, behaviour_ids: tuple[int, ...], runtime: Runtime) -> Judge:
    if spec == _FIRST_TOKEN:
        return FirstToken(tokens=behaviour_ids)
    if not spec.startswith("classifier:"):
        return installed(spec)
    name, revision, label = _classifier(spec)
    source = resolve_source(
        name,
        revision=revision,
        token=runtime.token,
        endpoint=runtime.endpoint,
        cache_dir=runtime.cache_dir,
        progress=runtime.progress,
    )
    return Classifier(source.folder, label, name=f"{source.repo or source.folder.name}#{label}")


def _classifier(spec: str) -> tuple[str, str | None, str]:
    """Name, revision and label."""
    found = _CLASSIFIER.fullmatch(spec)
    if found is None:
        raise EvaluationError(
            f"{spec!r} names no classifier",
            next_step="Write classifier:ORG/MODEL#LABEL, the label being the class that shows the "
            "behaviour",
        )
    return found["name"], found["revision"], found["label"]
