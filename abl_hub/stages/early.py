"""What a later stage would refuse, hours into a run, refused before it begins.

Knows what can be told from the recipe, the target and the base's card alone; loads no weight.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from abl_hub.directions.contrast import Contrast
from abl_hub.directions.methods import METHODS, NEED_RANK
from abl_hub.edits.quantised import declared
from abl_hub.edits.shards import CONFIG, read_json
from abl_hub.errors import EditError, EvaluationError, SourceError
from abl_hub.evaluation.harness import check_tasks
from abl_hub.hub.account import namespace
from abl_hub.hub.prompt_spec import is_local
from abl_hub.hub.prompts import load_prompts
from abl_hub.hub.source import SourcePlan, base_models, local_folder, plan_source
from abl_hub.model.chat import ChatModel
from abl_hub.report.recipe import Recipe
from abl_hub.stages.induce import refuse_other_options
from abl_hub.stages.judges import check_judges
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.target import Base, Target, check_licence, repositories
from abl_hub.stages.test_sets import named

_SEEDS = range(-(2**63), 2**63)
_SIDES = ("train", "validation", "test")


def check_recipe(recipe: Recipe, runtime: Runtime) -> None:
    """Refuse what no stage could do.

    Raises:
        SourceError: no such folder, method, test set or judge's model; a name or marker is blank.
        EditError: options that exclude each other, or a strength that is no number.
        EvaluationError: no such judge or task.
        ContrastError: a test set's file cannot be read.
    """
    local_folder(recipe.source, recipe.revision)
    _refuse_unusable(recipe)
    refuse_other_options(recipe)
    if not recipe.behaviour.strip():
        raise SourceError("The behaviour has no name", next_step="Name it with --behaviour")
    if not all(marker.strip() for marker in recipe.markers or ()):
        raise SourceError("A marker is empty", why="every reply would begin with it")
    if not math.isfinite(recipe.strength):
        raise EditError(f"{recipe.strength} is no strength", next_step="Give a finite number")
    if recipe.seed not in _SEEDS:
        raise EvaluationError("The seed is out of range", next_step="Give one of 64 bits")
    for asked in recipe.test_sets:
        spec = named(asked).spec
        if is_local(spec):
            load_prompts(spec)
    if recipe.tasks is not None:
        check_tasks(recipe.tasks)
    check_judges(recipe, runtime)
    if recipe.markers is None and "refus" not in recipe.behaviour.lower():
        runtime.progress.note(
            f"{recipe.behaviour} will be judged by refusal phrases: say with --marker what replies "
            "that show it open with"
        )


def _refuse_unusable(recipe: Recipe) -> None:
    """What cannot find or do anything."""
    unknown = [name for name in recipe.methods if name not in METHODS]
    if unknown:
        raise SourceError(f"No method {unknown[0]!r}", next_step=f"Choose of {', '.join(METHODS)}")
    wider = [name for name in recipe.methods if name in NEED_RANK]
    if wider and recipe.rank < 2:
        raise EditError(
            f"--method {wider[0]} does not go with --rank {recipe.rank}",
            why="it removes two directions or more together",
            next_step=f"Give --rank 2 or more, or leave --method {wider[0]} out",
        )
    if recipe.induce and recipe.strength == 0:
        raise EditError(
            "--induce does not go with --strength 0",
            why="nothing would be added",
            next_step="Give another --strength",
        )


def refuse_quantised(folder: Path) -> dict[str, Any]:
    """Refuse weights whose quantisation an edit cannot keep, before anything tries to load them.

    Returns:
        What config.json holds.

    Args:
        folder: with the model's config.json, and its card if there is one.

    Raises:
        EditError: so it is; it names the full-precision base, where the card does.
        SourceError: no readable config.json.
    """
    config = read_json(folder, CONFIG)
    try:
        declared(config)
    except EditError as error:
        named = base_models(folder)
        step = f"Give the full-precision base: {', '.join(named)}" if named else error.next_step
        raise EditError(error.what, why=error.why, next_step=step) from error
    return config


def check_target(recipe: Recipe, target: Target, runtime: Runtime) -> None:
    """Refuse what `push` would refuse once everything is made.

    Raises:
        HubError: no valid token, a name that no repository can have, or a licence that forbids
            derivatives.
        SourceError: as `plan_source`.
    """
    source = plan_source(
        recipe.source,
        revision=recipe.revision,
        token=runtime.token,
        endpoint=runtime.endpoint,
        cache_dir=runtime.cache_dir,
        trust_remote_code=recipe.trust_remote_code,
    )
    user = namespace(token=runtime.token, endpoint=runtime.endpoint)
    planned_repositories(source, recipe, target, target.namespace or user)


def planned_repositories(
    source: SourcePlan, recipe: Recipe, target: Target, owner: str
) -> dict[str, str]:
    """Where the parts would be published.

    Raises:
        HubError: the licence forbids derivatives, or as `repositories`.
    """
    base = Base.of_plan(source, recipe)
    check_licence(base)
    return repositories(base, target, owner)


def note_long_prompts(
    chat: ChatModel, contrast: Contrast, recipe: Recipe, runtime: Runtime
) -> None:
    """Say how many prompts go beyond the positions that the model was made for."""
    most = getattr(chat.model.config.get_text_config(), "max_position_embeddings", None)
    if not most or most < 0:
        return
    sides = (contrast.positive, contrast.negative)
    asked = [prompt for side in sides for part in _SIDES for prompt in getattr(side, part)]
    lengths = [len(chat.prompt_tokens(prompt)) + recipe.max_new_tokens for prompt in asked]
    long = sum(length > most for length in lengths)
    if long:
        runtime.progress.note(
            f"{long} of {len(asked)} prompts go beyond the model's {most} positions with their "
            "replies: what it says there may mean little"
        )
