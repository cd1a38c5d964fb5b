"""Stage 4: how the behaviour lies in the residual stream of the unedited model.

A few forward passes over the prompts and replies to a few of them; dose response, which needs more
replies, only where it is asked for. Nothing here decides anything: it is for readers who want to
know what was edited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from abl_hub.directions.contrast import Contrast, make_contrast
from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import Samples, activations
from abl_hub.directions.methods.projected import projected_mean_difference, without
from abl_hub.directions.methods.svd import subspace
from abl_hub.directions.selection import allowed_layers, log_odds
from abl_hub.directions.stability import Kind, Seeds, across_seeds
from abl_hub.edits.edit import Gains, remove
from abl_hub.edits.hooks import prepared
from abl_hub.errors import EvaluationError
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.spread import Reading
from abl_hub.model.chat import ChatModel
from abl_hub.model.gains import gains
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.writers import Trace
from abl_hub.report.record import (
    AnalysisRecord,
    HarmAndExecution,
    Record,
    load_record,
    save_record,
)
from abl_hub.stages.description import described, paired
from abl_hub.stages.dose import dose_response
from abl_hub.stages.edit import recorded_edit
from abl_hub.stages.extract import recorded_direction
from abl_hub.stages.front import front_points, judged_front
from abl_hub.stages.inputs import (
    Prompts,
    load_recorded,
    recorded_prompts,
    recorded_source,
    recorded_trace,
)
from abl_hub.stages.judges import protocol_of
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.spread import look_for_spread

_MOST_DIRECTIONS = 5


def analyse(out: Path, runtime: Runtime, *, doses: Sequence[float] = (), seeds: int = 0) -> Record:
    """Analyse the source of `out` and add it to the record.

    Args:
        doses: strengths at which the edit is tried, relative to its own; each takes replies to all
            validation prompts.
        seeds: other splits of the prompt sets, from whose training prompts the direction is made
            again; each takes a forward pass over them.

    Raises:
        SourceError, ContrastError: source or prompts have changed since `extract`.
        EvaluationError: the activations, or the doses, are not finite.
    """
    if not all(map(math.isfinite, doses)):
        raise EvaluationError("A dose is not finite", next_step="Give numbers, as in 0, 0.5, 1")
    record = load_record(out)
    direction = recorded_direction(record, out)
    source = recorded_source(record, runtime)
    prompts = recorded_prompts(record, runtime)
    contrast = prompts.contrast
    chat = load_recorded(source.folder, record, runtime)
    trace = recorded_trace(source, runtime)
    between = gains(chat.model, trace.writers)
    steps = 3 + len(front_points(record)) + seeds + len(doses)
    with runtime.progress.stage("Analysing", steps) as advance:
        # One more position than the template's: the instruction's own last token comes first.
        positions = len(chat.post_instruction_tokens) + 1
        train, test = (
            Samples(
                positive=activations(chat, positive, positions=positions, rows=runtime.rows),
                negative=activations(chat, negative, positions=positions, rows=runtime.rows),
            )
            for positive, negative in (
                (contrast.positive.train, contrast.negative.train),
                (contrast.positive.test, contrast.negative.test),
            )
        )
        if not bool(torch.isfinite(train.positive).all() & torch.isfinite(train.negative).all()):
            raise EvaluationError(
                "The activations are not finite", next_step="Try --dtype float32 or bfloat16"
            )
        advance(1)
        analysis = described(record, direction, train, test)
        advance(1)
        protocol = protocol_of(record.recipe, runtime)
        analysis = _probed(
            analysis, chat, contrast, direction, train, trace, between, record, protocol
        )
        advance(1)
        front = judged_front(chat, contrast, direction, trace, between, record, protocol, advance)
        analysis = replace(analysis, front=front)
        if seeds:
            again = _across_seeds(chat, prompts, direction, train, record, runtime, seeds, advance)
            analysis = replace(analysis, seeds=again)
        if doses:
            dose = dose_response(
                chat, contrast, direction, trace, between, record, protocol, doses, advance
            )
            analysis = replace(analysis, dose=dose)
    record = replace(record, analysis=analysis)
    save_record(record, out)
    return record


def _probed(
    analysis: AnalysisRecord,
    chat: ChatModel,
    contrast: Contrast,
    direction: Direction,
    train: Samples,
    trace: Trace,
    between: Gains,
    record: Record,
    protocol: Protocol,
) -> AnalysisRecord:
    """What the model does without some directions: first tokens, and a few whole replies."""
    tokens = record.selection.behaviour_ids

    def score(basis: torch.Tensor | None, along: torch.Tensor | None = None) -> float:
        if basis is None:
            after = next_token_log_probs(chat, contrast.positive.validation)
        else:
            with prepared(remove(basis, trace.writers, along=along), chat.model, between)():
                after = next_token_log_probs(chat, contrast.positive.validation)
        return float(log_odds(after, tokens).mean())

    layer = direction.layer
    ordinary = train.negative[:, layer, -1].double().mean(0)
    mean = projected_mean_difference(train.positive[:, layer, -1], train.negative[:, layer, -1])
    rows = without(paired(train, layer, record.recipe.seed), ordinary)
    components = torch.linalg.svd(rows, full_matrices=False).Vh
    most = min(_MOST_DIRECTIONS, len(components))
    base = score(None)
    residual = (
        base,
        score(direction.basis, direction.along),
        *(
            score(subspace(mean, components[:count], layer, -1).basis)
            for count in range(2, most + 1)
        ),
    )
    single = _alone(train, allowed_layers(len(chat.layers)))
    scores = {index: score(one[None]) for index, one in enumerate(single)}
    harm = Kind.of(direction).make(train.positive[:, layer, 0], train.negative[:, layer, 0])
    cosine = float(harm @ direction.vector / harm.norm().clamp_min(1e-300))
    analysis = replace(analysis, residual=residual, alone=min(scores.values()))
    if not record.recipe.induce:
        stable = analysis.stability
        removals, told = look_for_spread(
            chat,
            contrast,
            direction,
            recorded_edit(record, direction, trace),
            {index: single[index] for index in sorted(scores, key=scores.__getitem__)},
            components[:most],
            trace,
            between,
            protocol,
            Reading(
                auc=analysis.detection[layer].detector.auc.value,
                halves=None if stable is None else stable.halves,
            ),
        )
        analysis = replace(analysis, removals=removals, told=told, spread=told.finding == "several")
    return replace(
        analysis,
        harm=HarmAndExecution(
            layer=layer,
            cosine=cosine,
            base=base,
            without_harm=score(harm[None]) if float(harm.norm()) > 0 else base,
            without_execution=residual[1],
        ),
    )


def _alone(train: Samples, layers: int) -> list[torch.Tensor]:
    """The projected difference in means at the prompt's last token, of each of the first `layers`;
    unit length."""
    found = []
    for layer in range(layers):
        one, other = train.positive[:, layer, -1], train.negative[:, layer, -1]
        vector = projected_mean_difference(one, other)
        found.append(vector / vector.norm().clamp_min(1e-300))
    return found


def _across_seeds(
    chat: ChatModel,
    prompts: Prompts,
    direction: Direction,
    train: Samples,
    record: Record,
    runtime: Runtime,
    seeds: int,
    advance: Callable[[int], None],
) -> Seeds | None:
    """The direction made again from the training prompts of other splits."""
    kind, recipe = Kind.of(direction), record.recipe

    def drawn() -> Iterator[Samples]:
        for seed in range(recipe.seed + 1, recipe.seed + 1 + seeds):
            again = make_contrast(
                prompts.positive.prompts,
                prompts.negative.prompts,
                sizes=recipe.sizes,
                seed=seed,
                parts=prompts.positive.part_of | prompts.negative.part_of,
            )
            one, other = (
                activations(chat, side.train, positions=-kind.position, rows=runtime.rows)
                for side in (again.positive, again.negative)
            )
            yield Samples(positive=one, negative=other)
            advance(1)

    return across_seeds(direction, train, drawn(), kind)
