"""Stage 1: from prompts to the selected direction. Writes direction.safetensors and the record."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import Evidence
from abl_hub.directions.means import Means, mean_activations
from abl_hub.directions.methods.category import category_directions, cosines
from abl_hub.directions.selection import behaviour_tokens, validate
from abl_hub.edits.carrying import carrying_layers
from abl_hub.errors import EditError
from abl_hub.model.chat import load_chat_model, load_tokenizer
from abl_hub.model.meta import meta_model
from abl_hub.model.opening import common_opening, opened
from abl_hub.model.trace import trace_writers
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import (
    SCHEMA,
    DirectionRecord,
    Record,
    SelectionRecord,
    save_record,
)
from abl_hub.stages.choosing import choose_addition, choose_removal
from abl_hub.stages.crew import call
from abl_hub.stages.early import check_recipe, note_long_prompts, refuse_quantised
from abl_hub.stages.edit import example_removal
from abl_hub.stages.inputs import (
    describe_prompts,
    describe_source,
    fetch_prompts,
    fetch_source,
    fetch_weights,
    located,
)
from abl_hub.stages.legal import keep_legal
from abl_hub.stages.runtime import Runtime, dtype_named

DIRECTION = "direction.safetensors"
_ASKED = 8
_PACKAGES = ("abl-hub", "torch", "transformers", "peft", "safetensors", "huggingface_hub")


def extract(recipe: Recipe, out: Path, runtime: Runtime, *, command: str = "") -> Record:
    """Find the direction and write it with the record's first sections into `out`.

    Raises:
        SourceError, ContrastError, UnsupportedModelError, HubError: as their names say.
        EditError: weights that are quantised so that no edit can be written.
    """
    check_recipe(recipe, runtime)
    recipe = located(recipe)
    runtime = replace(runtime, trust_remote_code=recipe.trust_remote_code)  # the caller's recipe
    prompts = fetch_prompts(recipe, runtime)
    for side in (prompts.positive, prompts.negative):
        if side.ignored:
            runtime.progress.note(
                f"The category column of {side.name} is not used: it holds {side.ignored}"
            )
    # Traced, and the template read, before the weights are downloaded: a refusal costs nothing.
    source = fetch_source(recipe, runtime, weights=False)
    refuse_quantised(source.folder)
    blueprint = meta_model(source.folder, trust_remote_code=runtime.trust_remote_code)
    trace = trace_writers(blueprint)
    if recipe.induce:
        carrying_layers(blueprint, trace)
    else:
        example_removal(recipe, trace)
    load_tokenizer(source.folder, trust_remote_code=runtime.trust_remote_code)
    source = fetch_weights(source, recipe, runtime)
    chat = load_chat_model(
        source.folder,
        dtype=dtype_named(recipe.dtype),
        device=runtime.device,
        load_in=recipe.load_in,
        system=recipe.system,
        trust_remote_code=runtime.trust_remote_code,
    )
    asked = (*prompts.contrast.positive.train[:_ASKED], *prompts.contrast.negative.train[:_ASKED])
    opening = recipe.response_prefix
    if opening is None:
        opening = common_opening(chat, asked)
    if opening:
        runtime.progress.note(f"All replies are taken to begin with {opening!r}")
    chat = opened(chat, opening)
    note_long_prompts(chat, prompts.contrast, recipe, runtime)
    call(runtime, opening)
    means = mean_activations(
        chat,
        prompts.contrast,
        rows=runtime.rows,
        crew=runtime.crew,
        progress=runtime.progress,
    )
    tokens = behaviour_tokens(means)
    validation = validate(chat, prompts.contrast, tokens, rows=runtime.rows)
    evidence = Evidence(
        chat=chat,
        contrast=prompts.contrast,
        means=means,
        behaviour_tokens=tokens,
        categories=prompts.positive.category_of,
        rank=recipe.rank,
        seed=recipe.seed,
        rows=runtime.rows,
    )
    choice = (
        choose_addition(evidence, validation, blueprint, trace, recipe, runtime)
        if recipe.induce
        else choose_removal(evidence, validation, trace, recipe, runtime)
    )
    direction = choice.direction
    direction.save(out / DIRECTION)
    keep_legal(source.folder, source.licence.files, out)
    record = Record(
        schema=SCHEMA,
        command=command,
        versions=_versions(),
        recipe=recipe,
        source=describe_source(source),
        positive=describe_prompts(prompts.positive, prompts.contrast.positive),
        negative=describe_prompts(prompts.negative, prompts.contrast.negative),
        direction=_direction(direction, means),
        selection=SelectionRecord(
            rule=choice.rule,
            chosen=choice.chosen,
            passed=choice.passed,
            finalists=choice.finalists,
            candidates=choice.candidates,
            behaviour_tokens=tuple(chat.tokenizer.decode([token]) for token in validation.tokens),
            behaviour_ids=validation.tokens,
            filtered=validation.filtered,
            category_cosines=_category_cosines(evidence, direction),
        ),
        strengths=choice.strengths,
        opening=opening,
    )
    save_record(record, out)
    return record


def _category_cosines(
    evidence: Evidence, direction: Direction
) -> Mapping[str, Mapping[str, float]] | None:
    """How the categories' directions lie to each other, if it was asked for them."""
    if direction.method != "category":
        return None
    return cosines(category_directions(evidence), direction.layer)


def _direction(direction: Direction, means: Means) -> DirectionRecord:
    layers, positions, width = means.shape
    return DirectionRecord(
        behaviour=direction.behaviour,
        method=direction.method,
        layer=direction.layer,
        position=direction.position,
        norm=direction.norm,
        digest=direction.digest,
        rank=direction.rank,
        oblique=direction.along is not None,
        layer_count=layers,
        positions=positions,
        width=width,
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def recorded_direction(record: Record, out: Path) -> Direction:
    """The direction in `out`.

    Raises:
        SourceError: it cannot be read, or is not the one whose digest it carries.
        EditError: it is not that of the record.
    """
    direction = Direction.load(out / DIRECTION)
    if direction.digest != record.direction.digest:
        raise EditError(
            f"{out / DIRECTION} is not the direction of the record",
            why="it is another model's, or another run's",
            next_step="Put the right one back, or run `abl-hub extract` again",
        )
    return direction
