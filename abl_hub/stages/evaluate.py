"""Stage 3: what the written edit does on held-out prompts, before, after and under control.

What is measured is the merged model, read back from disk: the one that is shipped. Where there is
none because it will be streamed to the Hub, the same edit is measured as hooks, and the record says
so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from abl_hub.edits.edit import Edit, orthonormal
from abl_hub.edits.hooks import Active, prepared
from abl_hub.errors import EvaluationError
from abl_hub.evaluation.bench import Keep, Questions
from abl_hub.evaluation.evaluate import evaluate as measure
from abl_hub.evaluation.evaluate import evaluate_system
from abl_hub.evaluation.harness import check_tasks, run_tasks
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.tasks import Tasks
from abl_hub.model.chat import ChatModel
from abl_hub.model.gains import gains
from abl_hub.model.generate import Reply
from abl_hub.model.stream import adding
from abl_hub.report.record import Record, load_record, save_record
from abl_hub.stages.edit import recorded_edit
from abl_hub.stages.extract import recorded_direction
from abl_hub.stages.forms import MERGED
from abl_hub.stages.inputs import load_recorded, recorded_prompts, recorded_source, recorded_trace
from abl_hub.stages.judges import judges_of, protocol_of
from abl_hub.stages.links import refuse_links
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.test_sets import load_sets, measure_sets

COMPLETIONS = "completions.jsonl"


def evaluate(
    out: Path,
    runtime: Runtime,
    *,
    references: Mapping[str, str] | None = None,
    keep_completions: bool = False,
    tasks: Tasks | None = None,
    test_sets: Sequence[str] = (),
    test_set_limit: int | None = None,
) -> Record:
    """Evaluate `out/merged`, or the edit as hooks, against the base, and add it to the record.

    Args:
        references: prompt → the exactly right reply, where it is known.
        keep_completions: write every reply to `out/completions.jsonl`, which is never pushed.
        tasks: asked through lm-eval in place of the recorded recipe's.
        test_sets: asked in place of the recorded recipe's, if any.
        test_set_limit: most prompts of each.

    Raises:
        EvaluationError: there is nothing to evaluate, or lm-eval cannot ask a task.
        SourceError, ContrastError: source or prompts have changed since `extract`.
    """
    record = load_record(out)
    merged = (out / MERGED).is_dir()
    lost = not merged and record.merged is not None and not record.merged.streamed
    if record.edit is None or lost:
        raise EvaluationError(
            f"{out} holds no merged model", next_step=f"Run `abl-hub apply {out}` first"
        )
    if tasks is not None:
        record = replace(record, recipe=replace(record.recipe, tasks=tasks))
    elif record.recipe.tasks is not None and record.recipe.tasks.path is not None:
        raise EvaluationError(
            f"The tasks of {out} are not asked again",
            why="their folder may name Python to run, and a record alone must not start that",
            next_step="Give --tasks and --tasks-path",
        )
    if test_sets:
        limit = test_set_limit or record.recipe.test_set_limit
        asked_sets = replace(record.recipe, test_sets=tuple(test_sets), test_set_limit=limit)
        record = replace(record, recipe=asked_sets)
    recipe = record.recipe
    refuse_links(out / COMPLETIONS)
    if recipe.tasks is not None:
        check_tasks(recipe.tasks)
    direction = recorded_direction(record, out)
    source = recorded_source(record, runtime)
    asked = recorded_prompts(record, runtime)
    contrast = asked.contrast
    categories = asked.positive.category_of | asked.negative.category_of

    sets = load_sets(
        recipe.test_sets, asked, runtime, limit=recipe.test_set_limit, seed=recipe.seed
    )
    base = load_recorded(source.folder, record, runtime)
    trace = recorded_trace(source, runtime)
    between = gains(base.model, trace.writers)
    controls = random_subspaces(direction.width, direction.rank, recipe.random_draws, recipe.seed)

    def added(vector: torch.Tensor) -> AbstractContextManager[None]:
        return adding(base.layers, direction.layer, vector)

    active: Active
    random: list[Active]
    if recipe.induce:
        active = partial(added, recipe.strength * direction.addition)
        length = recipe.strength * direction.norm
        random = [partial(added, length * basis[0]) for basis in controls]
    else:
        edit = recorded_edit(record, direction, trace)
        active = prepared(edit, base.model, between)
        random = [
            prepared(control, base.model, between)
            for control in random_edits(edit, recipe.random_draws, recipe.seed)
        ]
    edited = Subject(chat=base, active=active)
    if merged:
        edited = Subject(chat=load_recorded(out / MERGED, record, runtime))
    replies: list[dict[str, str]] = []

    def keep(arm: str, side: str, prompts: Sequence[str], given: Sequence[Reply]) -> None:
        replies.extend(
            {"arm": arm, "side": side, "prompt": prompt, "reply": reply.text}
            for prompt, reply in zip(prompts, given, strict=True)
        )

    questions = Questions(
        positive=contrast.positive.test,
        negative=contrast.negative.test,
        references=references or {},
        categories=categories,
    )
    induced, induced_random = None, []
    if not recipe.induce:
        # A removal is tried the other way round too; an addition is that way round already.
        induced = Subject(chat=base, active=partial(added, direction.addition))
        norm = direction.norm
        induced_random = [
            Subject(chat=base, active=partial(added, norm * basis[0])) for basis in controls
        ]
    evaluation = measure(
        questions,
        base=Subject(chat=base),
        edited=edited,
        random=[Subject(chat=base, active=control) for control in random],
        induced=induced,
        induced_random=induced_random,
        aim="induce" if recipe.induce else "remove",
        protocol=protocol_of(recipe, runtime),
        judges=judges_of(recipe, record.selection.behaviour_ids, runtime),
        keep=keep if keep_completions else None,
        progress=runtime.progress,
    )
    other = other_system(base)
    if other is not None:
        condition, system = other
        arms = evaluate_system(
            questions,
            condition,
            base=Subject(chat=replace(base, system=system)),
            edited=replace(edited, chat=replace(edited.chat, system=system)),
            protocol=protocol_of(recipe, runtime),
            keep=partial(_aside, keep, condition) if keep_completions else None,
            progress=runtime.progress,
        )
        evaluation = replace(evaluation, system_arms=arms)
    if sets:
        found = measure_sets(
            sets,
            questions,
            base=Subject(chat=base),
            edited=edited,
            protocol=protocol_of(recipe, runtime),
            keep=keep if keep_completions else None,
            progress=runtime.progress,
        )
        evaluation = replace(evaluation, test_sets=found)
    if recipe.tasks is not None:
        scores = run_tasks(
            recipe.tasks,
            base=Subject(chat=base),
            edited=edited,
            rows=runtime.rows,
            trust_remote_code=runtime.trust_remote_code,
            progress=runtime.progress,
        )
        evaluation = replace(evaluation, tasks=scores)
    if keep_completions:
        lines = (json.dumps(reply, ensure_ascii=False) for reply in replies)
        (out / COMPLETIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = replace(record, evaluation=evaluation, evaluated_form="merged" if merged else "hooks")
    save_record(record, out)
    return record


def random_subspaces(width: int, rank: int, count: int, seed: int) -> list[torch.Tensor]:
    """The control's directions: `count` uniformly random bases, (rank, width) float64 each."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, rank, width, generator=generator, dtype=torch.float64)
    return [orthonormal(rows) for rows in drawn]


def random_edits(edit: Edit, count: int, seed: int) -> list[Edit]:
    """`edit` turned at random, `count` times: other directions, the same writers, as strongly.

    What an oblique edit subtracts is turned with its directions: as long, at the same angles to
    them, and otherwise anywhere.
    """
    rank, width = edit.directions.shape
    if edit.along is None:
        bases = random_subspaces(width, rank, count, seed)
        return [replace(edit, directions=basis) for basis in bases]
    # Of what is subtracted, the part across the directions, in coordinates of a plane of its own.
    across = torch.linalg.qr((edit.along - edit.directions).T).R.T
    return [
        replace(edit, directions=rows[:rank], along=rows[:rank] + across @ rows[rank:])
        for rows in random_subspaces(width, 2 * rank, count, seed)
    ]


def other_system(chat: ChatModel) -> tuple[Literal["empty", "none", "default"], str | None] | None:
    """The system prompt under which to measure once more, and what to call it; None is nothing new.

    A template's default system prompt is left out, or let in where the user's is empty; without
    one, the user's is left out.
    """
    if chat.default_system is not None:
        return ("default", None) if chat.system == "" else ("empty", "")
    return ("none", None) if chat.system else None


def _aside(
    keep: Keep, condition: str, arm: str, side: str, prompts: Sequence[str], given: Sequence[Reply]
) -> None:
    keep(f"{arm}, system prompt: {condition}", side, prompts, given)
