"""Fitted strengths: fewer writers, no more refusals, and the choice is made by whole replies."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.directions.contrast import Contrast, SplitSizes, make_contrast
from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import Evidence
from abl_hub.directions.means import mean_activations
from abl_hub.directions.methods import METHODS
from abl_hub.directions.selection import behaviour_tokens, direction_of
from abl_hub.edits.edit import Edit, remove
from abl_hub.edits.hooks import applied
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import baseline
from abl_hub.model import teacher_forcing
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.generate import continuations, greedy_replies
from abl_hub.model.teacher_forcing import log_probs
from abl_hub.model.trace import trace_writers
from abl_hub.model.writers import Trace, Writer
from abl_hub.progress import SILENT
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Finalist, StrengthsRecord, load_record
from abl_hub.stages.strengths import choose_strengths, lesson_of
from abl_hub.strengths.course import STRONGEST, Fitted
from abl_hub.strengths.fit import Budget, fit
from abl_hub.strengths.groups import OUTSIDE, groups, spread

LAYER = 2
"""Where the one-strength edit of the demo model leaves most of the refusals."""


@pytest.fixture(scope="module")
def chat(demo: Path) -> ChatModel:
    return load_chat_model(demo)


@pytest.fixture(scope="module")
def contrast() -> Contrast:
    asked = prompts()
    return make_contrast(
        [prompt for prompt, _ in asked.positive],
        [prompt for prompt, _ in asked.negative],
        sizes=SplitSizes(train=64, validation=24, test=8),
    )


@pytest.fixture(scope="module")
def evidence(chat: ChatModel, contrast: Contrast) -> Evidence:
    means = mean_activations(chat, contrast)
    return Evidence(
        chat=chat, contrast=contrast, means=means, behaviour_tokens=behaviour_tokens(means)
    )


def edit_at(layer: int, evidence: Evidence, trace: Trace) -> Edit:
    [found] = [
        proposal
        for proposal in METHODS["projected"](evidence)
        if (proposal.layer, proposal.position) == (layer, -1)
    ]
    return remove(found.basis, trace.writers)


def test_the_front_trades_refusals_for_kl_and_beats_one_strength(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    trace = trace_writers(chat.model)
    between, names = gains(chat.model, trace.writers), groups(trace)
    edit = edit_at(LAYER, evidence, trace)
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    before = {name: weight.clone() for name, weight in chat.model.named_parameters()}
    found = fit(chat, [edit], names, between, lesson)
    front = found.points
    assert all(torch.equal(weight, before[n]) for n, weight in chat.model.named_parameters())
    against = baseline(
        Subject(chat=chat),
        contrast.positive.validation,
        contrast.negative.validation,
        protocol=Protocol(max_new_tokens=48),
    )

    def subject(strengths: tuple[float, ...]) -> Subject:
        fitted = replace(edit, strengths=strengths)
        return Subject(chat=chat, active=partial(applied, fitted, chat.model, between))

    one = subject(edit.strengths)
    fitted = [subject(spread(names, point.strengths)) for point in front]
    before_fit, after_fit = against.failures(one), against.failures(fitted[0])
    assert before_fit.share > 0.6
    assert after_fit.share < before_fit.share - 0.25
    # What a similar edit replied saves work and changes nothing.
    for like in (before_fit, after_fit):
        again = against.failures(fitted[0], like=like)
        assert (again.replies, again.share) == (after_fit.replies, after_fit.share)
        assert again.surprise == pytest.approx(after_fit.surprise, abs=1e-4)
    assert len(front) > 1
    assert all(dear.kl > cheap.kl for dear, cheap in pairwise(front))
    for point in front:
        assert set(point.strengths) == set(names)
        assert all(0.0 <= strength <= STRONGEST for strength in point.strengths.values())


def test_no_point_of_the_front_is_worse_than_another(chat: ChatModel) -> None:
    """What is best for a weight may be seen on the way to a later one, as it is here."""
    asked = prompts()
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive],
        [prompt for prompt, _ in asked.negative],
        sizes=SplitSizes(train=120, validation=24, test=8),
    )
    means = mean_activations(chat, contrast)
    evidence = Evidence(
        chat=chat, contrast=contrast, means=means, behaviour_tokens=behaviour_tokens(means)
    )
    trace = trace_writers(chat.model)
    edits = [edit_at(layer, evidence, trace) for layer in (4, 5, 6)]
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    front = fit(chat, edits, groups(trace), gains(chat.model, trace.writers), lesson).points
    assert len(front) > 2
    for dear, cheap in pairwise(front):
        assert dear.kl > cheap.kl
        assert dear.opening <= cheap.opening


def test_a_seed_gives_the_same_strengths_again(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    trace = trace_writers(chat.model)
    between, names = gains(chat.model, trace.writers), groups(trace)
    edit = edit_at(4, evidence, trace)
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    budget = Budget(steps=4, leaps=0)
    one, again = (fit(chat, [edit], names, between, lesson, budget=budget) for _ in range(2))
    other = fit(chat, [edit], names, between, lesson, budget=budget, seed=1)
    assert one == again
    assert one.points[0].strengths != other.points[0].strengths


def test_a_large_vocabulary_takes_more_passes_and_fits_the_same(
    chat: ChatModel, contrast: Contrast, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = trace_writers(chat.model)
    between, names = gains(chat.model, trace.writers), groups(trace)
    edit = edit_at(4, evidence, trace)
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    sizes: list[int] = []
    hook = chat.model.register_forward_hook(
        lambda _module, _inputs, output: sizes.append(4 * output.logits.numel())
    )

    def fitted() -> tuple[Fitted, int, int]:
        sizes.clear()
        front = fit(chat, [edit], names, between, lesson, budget=Budget(steps=4, leaps=0))
        return front.points[0], len(sizes), max(sizes)

    try:
        one, passes, largest = fitted()
        # As if the vocabulary were so much larger.
        monkeypatch.setattr(teacher_forcing, "LOGIT_BYTES", largest // 5)
        other, more, smaller = fitted()
    finally:
        hook.remove()
    assert smaller <= largest // 5
    assert more > 2 * passes
    assert other.strengths == pytest.approx(one.strengths, abs=1e-3)
    assert other.kl == pytest.approx(one.kl, rel=1e-3)


def test_an_oblique_edit_is_first_tried_where_it_subtracts_as_much_as_it_reads(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    trace = trace_writers(chat.model)
    between, names = gains(chat.model, trace.writers), groups(trace)
    plain = edit_at(4, evidence, trace)
    across = torch.randn(1, trace.width, generator=torch.Generator().manual_seed(0)).double()
    across -= across @ plain.directions.T @ plain.directions
    along = plain.directions + across / across.norm() * math.sqrt(15.0)  # four times as long
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    budget = Budget(steps=0, leaps=0)
    for edit, first in ((plain, 1.0), (replace(plain, along=along), 0.25)):
        [point] = fit(chat, [edit], names, between, lesson, budget=budget).points
        assert all(one == pytest.approx(first) for one in point.strengths.values())


def test_the_direction_that_carries_the_behaviour_is_chosen(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    trace = trace_writers(chat.model)
    between, names = gains(chat.model, trace.writers), groups(trace)
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    good = edit_at(4, evidence, trace)
    random = torch.randn(1, trace.width, generator=torch.Generator().manual_seed(0))
    other = remove(random / random.norm(), trace.writers)
    budget = Budget(steps=4, leaps=0)
    for edits in ([other, good], [good, other]):
        front = fit(chat, edits, names, between, lesson, budget=budget)
        assert edits[front.chosen] is good
        # One point: removed at first, and no budget to look where it comes back.
        assert front.points[0].opening < 0.2


def test_writers_that_are_not_edited_stay_so(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    trace = trace_writers(chat.model)
    between, names = gains(chat.model, trace.writers), groups(trace)
    edit = edit_at(4, evidence, trace)
    edit = remove(edit.directions, trace.writers, layers=(2, 5))
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    budget = Budget(steps=2, leaps=0)
    [point] = fit(chat, [edit], names, between, lesson, budget=budget).points
    assert {name.partition(".")[0] for name in point.strengths} == set("2345")


def test_the_finalist_that_is_named_is_the_one_that_is_taken(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    """Two are level by whole replies, and the fit of a random direction is worse than both."""
    trace = trace_writers(chat.model)
    random = torch.randn(2, trace.width, generator=torch.Generator().manual_seed(0))
    directions = {
        method: (Direction(vector=vector, layer=4, position=-1, norm=1.0, method=method),)
        for method, vector in zip(("difference", "projected"), random, strict=True)
    }
    finalists = tuple(
        Finalist(method=method, layer=4, position=-1, passed=True, failures=0.5, damage=0.0, kl=kl)
        for method, kl in (("difference", 0.3), ("projected", 0.1))
    )
    taken, record = choose_strengths(
        chat,
        baseline(
            Subject(chat=chat),
            contrast.positive.validation,
            contrast.negative.validation,
            protocol=Protocol(max_new_tokens=16),
        ),
        partial(lesson_of, chat, contrast, evidence.behaviour_tokens, rows=32),
        directions,
        finalists,
        trace,
        gains(chat.model, trace.writers),
        Recipe(source="", positive="", negative="", budget=1),
        SILENT,
    )
    assert record.chosen is None
    assert "lowest KL (0.1000: projected" in record.reason
    assert taken is directions["projected"][0]


def test_auto_fits_only_what_costs_more_than_a_negligible_kl(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    trace = trace_writers(chat.model)
    [found] = [
        proposal
        for proposal in METHODS["projected"](evidence)
        if (proposal.layer, proposal.position) == (4, -1)
    ]
    direction = direction_of(found, "projected", "refusal")
    against = baseline(
        Subject(chat=chat),
        contrast.positive.validation,
        contrast.negative.validation,
        protocol=Protocol(max_new_tokens=32),
    )

    def chosen(kl: float) -> StrengthsRecord:
        one = Finalist(
            method="projected", layer=4, position=-1, passed=True, failures=0.0, damage=0.0, kl=kl
        )
        taken, record = choose_strengths(
            chat,
            against,
            partial(lesson_of, chat, contrast, evidence.behaviour_tokens, rows=32),
            {"projected": (direction,)},
            (one,),
            trace,
            gains(chat.model, trace.writers),
            Recipe(source="", positive="", negative=""),
            SILENT,
        )
        assert taken is direction
        return record

    cheap, dear = chosen(0.009), chosen(0.05)
    assert cheap.chosen is None
    assert cheap.points == ()
    assert "KL of 0.0090: nothing to improve" in cheap.reason
    fitted = dear.points[dear.chosen]
    assert fitted.kl < 0.009
    assert fitted.failures + fitted.damage <= 1 / len(against.positive)


def test_a_vocabulary_that_is_masked_in_part_can_be_fitted(
    chat: ChatModel, contrast: Contrast, evidence: Evidence
) -> None:
    trace = trace_writers(chat.model)
    names = groups(trace)
    edit = edit_at(4, evidence, trace)
    lesson = lesson_of(chat, contrast, evidence.behaviour_tokens, rows=32)
    said = {token for one in lesson.negative for token in one.tokens}
    unused = [token for token in range(300) if token not in {*said, *lesson.behaviour_tokens}][:20]

    def masked(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        ruled_out = torch.zeros(logits.shape[-1], dtype=torch.bool)
        ruled_out[unused] = True
        return logits.masked_fill(ruled_out, -torch.inf)

    handle = chat.model.lm_head.register_forward_hook(masked)
    try:
        against = baseline(
            Subject(chat=chat),
            contrast.positive.validation[:4],
            contrast.negative.validation[:4],
            protocol=Protocol(max_new_tokens=8),
        )
        between, budget = gains(chat.model, trace.writers), Budget(steps=2, leaps=0)
        [point] = fit(chat, [edit], names, between, lesson, budget=budget).points
        active = partial(applied, edit, chat.model, between)
        over_replies = against.kl(Subject(chat=chat, active=active)).value
    finally:
        handle.remove()
    assert 0 < point.kl < 1
    assert 0 < over_replies < 1


def test_groups_are_the_child_modules_of_layers() -> None:
    def writer(parameter: str, layer: int | None) -> Writer:
        return Writer(parameter=parameter, axis=0, shape=(4, 4), layer=layer)

    trace = Trace(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        layers="transformer.h",
        layer_count=2,
        width=4,
        writers=(
            writer("transformer.wte.weight", None),
            writer("transformer.h.1.attn.c_proj.weight", 1),
            writer("transformer.h.1.attn.c_proj.bias", 1),
            writer("transformer.h.1.mlp.c_proj.weight", 1),
        ),
    )
    assert groups(trace) == (OUTSIDE, "1.attn", "1.attn", "1.mlp")
    assert spread(groups(trace), {"1.mlp": 0.5}) == (1.0, 1.0, 1.0, 0.5)


def test_company_in_a_batch_does_not_change_likelihoods(chat: ChatModel) -> None:
    asked = [prompt for prompt, _ in prompts().negative[:9]]
    replies = greedy_replies(chat, asked, max_new_tokens=24)
    sequences = continuations(chat, asked, replies)
    together = dict(log_probs(chat, sequences, rows=9))
    alone = dict(log_probs(chat, sequences, rows=1))
    assert len({len(one.tokens) for one in sequences}) > 1
    for index, one in enumerate(sequences):
        assert len(together[index]) == len(alone[index]) == one.judged
        assert torch.allclose(together[index], alone[index], atol=1e-4)


def test_extract_fits_where_it_is_asked_to_and_the_edit_holds_it(
    demo: Path, tmp_path: Path
) -> None:
    files = write_prompts(prompts(), tmp_path)
    asked = ["--positive", files[0], "--negative", files[1], "--method", "projected"]
    sizes = ["--train", 48, "--validation", 12, "--test", 8]
    for strengths in ("auto", "fit"):
        out = tmp_path / strengths
        words = ["extract", demo, "-o", out, *asked, *sizes, "--strengths", strengths]
        result = CliRunner().invoke(command, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    auto = load_record(tmp_path / "auto").strengths
    assert auto.chosen is None
    assert "nothing to improve" in auto.reason
    found = load_record(tmp_path / "fit").strengths
    costs = [point.training_kl for point in found.points]
    assert costs == sorted(costs, reverse=True)
    assert len(costs) > 2
    taken = found.points[found.chosen]
    direction = load_record(tmp_path / "fit").direction
    assert (taken.layer, taken.position) == (direction.layer, direction.position)
    assert taken.failures <= 0.1
    result = CliRunner().invoke(command, ["apply", str(tmp_path / "fit")])
    assert result.exit_code == 0, result.output
    record = load_record(tmp_path / "fit")
    assert record.edit.exactness == "partial"
    assert record.agreement.hooks_merged <= 1e-4
    assert record.agreement.hooks_delta <= 1e-4
    written = {writer.parameter: writer.strength for writer in record.edit.writers}
    assert written["model.layers.3.mlp.down_proj.weight"] == pytest.approx(taken.strengths["3.mlp"])
    # The report's front: every point by whole replies, as the choice judged those that it needed.
    result = CliRunner().invoke(command, ["analyse", str(tmp_path / "fit")])
    assert result.exit_code == 0, result.output
    assert "(taken)" in result.output
    one, *front = load_record(tmp_path / "fit").analysis.front
    assert one.point is None
    assert [point.point for point in front] == list(range(len(found.points)))
    again = front[found.chosen]
    assert again.failures.value == taken.failures
    assert again.failures.count == 12
    assert again.kl.value == pytest.approx(taken.kl, rel=0.01)
    assert one.kl.value > again.kl.value
