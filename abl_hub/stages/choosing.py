"""Which direction is taken: first by the first token of the replies, then by whole ones.

To be removed (`choose_removal`) or to be added (`choose_addition`). Knows the scores and the
trials; neither where prompts come from nor what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial

from transformers import PreTrainedModel

from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import Evidence
from abl_hub.directions.induction import inducing, passes
from abl_hub.directions.methods import METHODS
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import Ablation, Candidate, Selection, Validation, select
from abl_hub.edits.carrying import carrying_layers
from abl_hub.edits.hooks import Active, prepared
from abl_hub.evaluation.raising import raising_trial, showing
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Baseline, Trial, baseline, trial
from abl_hub.model.gains import gains
from abl_hub.model.stream import adding
from abl_hub.model.writers import Trace
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Finalist, StrengthsRecord
from abl_hub.stages.edit import removal
from abl_hub.stages.judges import protocol_of
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.strengths import choose_strengths, lesson_of

_REMOVAL = (
    "each method's best candidate by Arditi et al. 2024 (bypass; KL <= 0.1, induce >= 0, layer < "
    "0.8 L); then by whole replies to validation prompts: fewest failures and least damage, "
    "then those that met all thresholds, then lowest KL; fitted strengths may take a deeper layer "
    "of the method, or, where no candidate met all thresholds, one at the last token there or that "
    "of lowest bypass"
)
_ADDITION = (
    "each method's four layers where adding makes the behaviour likeliest (log-odds of the first "
    "token; layers that can carry a constant, layer < 0.8 L); then by whole replies to validation "
    "prompts: fewest that do not show the behaviour, then lowest KL where it was shown before"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The direction, and how it came to be chosen.

    Args:
        chosen: its scores.
        passed: whether it met the paper's thresholds.
        finalists: judged by whole replies, best first.
        candidates: of every method, all that were judged.
    """

    direction: Direction
    chosen: Candidate
    passed: bool
    rule: str
    finalists: tuple[Finalist, ...]
    candidates: Mapping[str, tuple[Candidate, ...]]
    strengths: StrengthsRecord


def choose_removal(
    evidence: Evidence, validation: Validation, trace: Trace, recipe: Recipe, runtime: Runtime
) -> Choice:
    """What is removed, and how strongly.

    Raises:
        ContrastError: there is no candidate.
    """
    chat, contrast = evidence.chat, evidence.contrast
    between = gains(chat.model, trace.writers)

    @cache
    def ready(proposal: Proposal) -> Active:
        edit = removal(recipe, proposal.basis, proposal.along, trace)
        return prepared(edit, chat.model, between)

    def ablate(proposal: Proposal) -> AbstractContextManager[None]:
        return ready(proposal)()

    selections = {
        method: select(
            chat,
            METHODS[method](evidence),
            validation,
            method=method,
            ablate=ablate,
            behaviour=recipe.behaviour,
            progress=runtime.progress,
        )
        for method in recipe.methods
    }
    against = baseline(
        Subject(chat=chat),
        contrast.positive.validation,
        contrast.negative.validation,
        protocol=protocol_of(recipe, runtime),
    )
    finalists: tuple[Finalist, ...] = ()
    if len(selections) > 1 or recipe.strengths != "fit":
        finalists = _finalists(against, selections, ablate, runtime)
    direction, strengths = choose_strengths(
        chat,
        against,
        partial(lesson_of, chat, contrast, evidence.behaviour_tokens, rows=runtime.rows),
        {name: (found.direction, *found.alternatives) for name, found in selections.items()},
        finalists,
        trace,
        between,
        recipe,
        runtime.progress,
    )
    chosen = selections[direction.method]
    if not chosen.passed:
        runtime.progress.note(
            "Of those within the limit of KL the one that leaves least of the behaviour was taken, "
            "or else the one of lowest KL; the record says so."
        )
    return Choice(
        direction=direction,
        chosen=chosen.chosen,
        passed=chosen.passed,
        rule=_REMOVAL,
        finalists=finalists,
        candidates={method: selected.candidates for method, selected in selections.items()},
        strengths=strengths,
    )


def _finalists(
    against: Baseline, selections: Mapping[str, Selection], ablate: Ablation, runtime: Runtime
) -> tuple[Finalist, ...]:
    """Each method's best candidate; best first."""
    entries = [
        (
            selection.direction,
            selection.passed,
            partial(
                trial,
                against,
                Subject(chat=against.subject.chat, active=partial(ablate, selection.proposal)),
            ),
        )
        for selection in selections.values()
    ]
    return tuple(sorted(_judged("Comparing methods", entries, runtime), key=_rank))


def _rank(finalist: Finalist) -> tuple[float, bool, float]:
    # Whole replies count before first-token thresholds: a candidate that passes them all and leaves
    # the behaviour where it was is of no use.
    return (round(finalist.failures + finalist.damage, 2), not finalist.passed, finalist.kl)


def choose_addition(
    evidence: Evidence,
    validation: Validation,
    blueprint: PreTrainedModel,
    trace: Trace,
    recipe: Recipe,
    runtime: Runtime,
) -> Choice:
    """What is added, and behind which layer.

    Raises:
        ContrastError: there is no candidate.
        UnsupportedModelError: no layer can carry a constant.
    """
    chat, contrast = evidence.chat, evidence.contrast
    found = {
        method: inducing(
            chat,
            METHODS[method](evidence),
            validation,
            method=method,
            layers=carrying_layers(blueprint, trace),
            strength=recipe.strength,
            behaviour=recipe.behaviour,
            progress=runtime.progress,
        )
        for method in recipe.methods
    }
    against = showing(
        Subject(chat=chat),
        contrast.positive.validation,
        contrast.negative.validation,
        protocol=protocol_of(recipe, runtime),
    )
    best = [one for method in found.values() for one in method.best]
    entries = [
        (
            direction,
            passes(candidate),
            partial(
                raising_trial,
                against,
                Subject(
                    chat=chat,
                    active=partial(
                        adding, chat.layers, direction.layer, recipe.strength * direction.addition
                    ),
                ),
            ),
        )
        for candidate, direction in best
    ]
    finalists = _judged("Comparing additions", entries, runtime)
    winner = min(range(len(best)), key=lambda index: _rank_of_addition(finalists[index]))
    candidate, direction = best[winner]
    return Choice(
        direction=direction,
        chosen=candidate,
        passed=passes(candidate),
        rule=_ADDITION,
        finalists=tuple(sorted(finalists, key=_rank_of_addition)),
        candidates={method: one.candidates for method, one in found.items()},
        strengths=StrengthsRecord(reason="an addition has one strength"),
    )


def _rank_of_addition(finalist: Finalist) -> tuple[float, float]:
    return (round(finalist.failures, 2), finalist.kl)


def _judged(
    title: str,
    entries: Sequence[tuple[Direction, bool, Callable[[], Trial]]],
    runtime: Runtime,
) -> list[Finalist]:
    """Try each: (direction, whether it met the thresholds, its trial)."""
    judged = []
    with runtime.progress.stage(title, len(entries)) as advance:
        for direction, passed, tried in entries:
            outcome = tried()
            judged.append(
                Finalist(
                    method=direction.method,
                    layer=direction.layer,
                    position=direction.position,
                    passed=passed,
                    failures=outcome.failures,
                    damage=outcome.damage,
                    kl=outcome.kl,
                )
            )
            advance(1)
    return judged
