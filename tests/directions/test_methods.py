"""Every method finds what mediates the behaviour in a trained model, and a random one does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from abl_hub.demo.corpus import prompts
from abl_hub.directions.contrast import SplitSizes, make_contrast
from abl_hub.directions.evidence import Evidence, Samples
from abl_hub.directions.means import Means, SideMeans, mean_activations
from abl_hub.directions.methods import METHODS, Method, som
from abl_hub.directions.methods.category import category_directions, cosines
from abl_hub.directions.methods.svd import spectrum
from abl_hub.directions.proposal import Proposal
from abl_hub.directions.selection import (
    Ablation,
    Selection,
    Validation,
    behaviour_tokens,
    log_odds,
    select,
    validate,
)
from abl_hub.edits.edit import orthonormal, remove
from abl_hub.edits.hooks import applied
from abl_hub.errors import ContrastError
from abl_hub.model.chat import load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.trace import trace_writers

WIDTH = 12


@pytest.fixture(scope="module")
def evidence(demo: Path) -> Evidence:
    chat = load_chat_model(demo)
    asked = prompts()
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive],
        [prompt for prompt, _ in asked.negative],
        sizes=SplitSizes(train=48, validation=12, test=8),
    )
    means = mean_activations(chat, contrast)
    return Evidence(
        chat=chat,
        contrast=contrast,
        means=means,
        behaviour_tokens=behaviour_tokens(means),
        # Harmless stand-ins: the demo's things fall into those that are spells and those that not.
        categories={
            prompt: "spell" if "spell" in prompt else "thing" for prompt, _ in asked.positive
        },
        rank=2,
    )


def _category(prompt: str) -> str:
    return "spell" if any(word in prompt for word in ("spell", "charm", "potion")) else "thing"


@pytest.fixture(scope="module")
def validation(evidence: Evidence) -> Validation:
    return validate(evidence.chat, evidence.contrast, evidence.behaviour_tokens)


@pytest.fixture(scope="module")
def ablate(evidence: Evidence) -> Callable[[Proposal], AbstractContextManager[None]]:
    model = evidence.chat.model
    writers = trace_writers(model).writers
    between = gains(model, writers)
    return lambda proposal: applied(
        remove(proposal.basis, writers, along=proposal.along), model, between
    )


@pytest.fixture(scope="module")
def selection(
    evidence: Evidence, validation: Validation, ablate: Ablation
) -> Callable[[str], Selection]:
    """What a method offers; some take long, and several tests ask."""

    @cache
    def selected(method: str) -> Selection:
        proposals = METHODS[method](evidence)
        return select(evidence.chat, proposals, validation, method=method, ablate=ablate)

    return selected


@pytest.mark.parametrize("method", METHODS)
def test_every_method_beats_random_directions(
    method: str,
    evidence: Evidence,
    validation: Validation,
    ablate: Ablation,
    selection: Callable[[str], Selection],
) -> None:
    selected = selection(method)
    rank = selected.direction.rank
    assert rank == (1 if selected.direction.further is None else len(selected.proposal.basis))
    generator = torch.Generator().manual_seed(0)
    random = []
    for _ in range(3):
        basis = orthonormal(torch.randn(rank, evidence.chat.width, generator=generator).double())
        control = Proposal(layer=0, position=-1, basis=basis, addition=basis[0])
        with ablate(control):
            after = next_token_log_probs(evidence.chat, validation.positive)
        random.append(float(log_odds(after, validation.tokens).mean()))
    # Log-odds of refusing: a random direction leaves them where they were.
    assert min(random) > 2.5
    assert selected.chosen.bypass < min(random) - 0.2


@pytest.mark.parametrize("method", ["projected", "winsorized", "pca", "svd", "som", "rdo"])
def test_methods_that_keep_ordinary_prompts_pass_the_paper_s_thresholds(
    method: str, selection: Callable[[str], Selection]
) -> None:
    selected = selection(method)
    assert selected.passed
    assert selected.chosen.bypass < -3
    assert selected.chosen.induce > 0


def test_what_fails_at_one_strength_is_fitted_at_the_last_token(
    selection: Callable[[str], Selection],
) -> None:
    failing = selection("difference")
    assert not failing.passed
    assert failing.direction.position != -1
    offered = {(found.layer, found.position) for found in failing.alternatives}
    assert {(5, -1), (6, -1)} <= offered
    assert {position for _, position in offered} == {-1}
    assert len(offered) == len(failing.alternatives)
    passing = selection("projected")
    assert {found.position for found in passing.alternatives} == {passing.direction.position}


def made(positive: torch.Tensor, negative: torch.Tensor, rank: int = 3) -> Evidence:
    """Evidence from activations (prompts, width), as if one layer and position had shown them."""
    evidence = Evidence(
        chat=None,  # type: ignore[arg-type]
        contrast=None,  # type: ignore[arg-type]
        means=Means(positive=side(positive), negative=side(negative)),
        behaviour_tokens=(),
        rank=rank,
    )
    shape = (-1, 1, 1, WIDTH)
    samples = Samples(positive=positive.reshape(shape), negative=negative.reshape(shape))
    evidence.__dict__["samples"] = samples
    return evidence


def side(activations: torch.Tensor) -> SideMeans:
    mean = activations.double().mean(0)[None, None]
    return SideMeans(activations=mean, first_token=torch.zeros(1), count=len(activations))


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def axis(index: int) -> torch.Tensor:
    return torch.eye(WIDTH)[index]


def test_affine_erasure_moves_one_mean_onto_the_other_and_leaves_that_where_it_was() -> None:
    stretch = torch.linspace(0.2, 3.0, WIDTH)
    positive = draw(40, 0) * stretch + 4 * axis(0) + 2 * axis(5)
    negative = draw(40, 1) * stretch + 2 * axis(5)
    [found] = METHODS["leace"](made(positive, negative))
    assert found.along is not None
    edit = torch.eye(WIDTH, dtype=torch.float64) - torch.outer(found.along[0], found.basis[0])
    before, ordinary = positive.double().mean(0), negative.double().mean(0)
    assert torch.allclose(edit @ ordinary, ordinary, atol=1e-5)
    assert torch.allclose(edit @ before, ordinary, atol=1e-5)
    # An orthogonal projection would have had no reason to avoid the noisy features.
    plain = (before - ordinary) / (before - ordinary).norm()
    assert not torch.allclose(found.basis[0].abs(), plain.abs(), atol=1e-2)


def test_a_component_is_not_robbed_of_the_mean() -> None:
    positive, negative = 0.1 * draw(40, 0) + 3 * axis(2), 0.1 * draw(40, 1)
    [found] = METHODS["pca"](made(positive, negative))
    assert float(found.basis[0, 2]) > 0.99


def test_an_outlier_does_not_decide_the_clipped_difference() -> None:
    positive, negative = 0.1 * draw(80, 0) + axis(2), 0.1 * draw(80, 1)
    positive[0] += 1000 * axis(7)
    [clipped] = METHODS["winsorized"](made(positive, negative))
    [plain] = METHODS["difference"](made(positive, negative))
    assert float(clipped.basis[0, 2]) > 0.95
    assert float(plain.basis[0, 7]) > 0.95


@pytest.mark.parametrize("propose", [METHODS["svd"], som.frequented])
def test_a_spread_behaviour_is_removed_with_all_its_directions(propose: Method) -> None:
    kinds = torch.stack([4 * axis(i) for i in (1, 3, 6)])
    positive = 0.05 * draw(60, 0) + kinds.repeat(20, 1)
    negative = 0.05 * draw(60, 1) + axis(9)
    found = propose(made(positive, negative))
    assert [len(proposal.basis) for proposal in found] == [2, 3]
    basis = found[-1].basis
    assert torch.allclose(basis @ basis.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    for kind in kinds.double():
        assert float((basis @ kind).norm() / kind.norm()) > 0.95
    # Zero is the ordinary value in every direction that is removed.
    ordinary = negative.double().mean(0)
    assert float((basis @ ordinary).abs().max()) < 0.05


def test_neurons_are_chosen_by_what_their_removal_leaves(
    evidence: Evidence, validation: Validation, ablate: Ablation
) -> None:
    [chosen] = som.searched(evidence)
    [frequent] = [one for one in som.frequented(evidence) if one.layer == chosen.layer]
    left = []
    for proposal in (chosen, frequent):
        with ablate(proposal):
            after = next_token_log_probs(evidence.chat, validation.positive)
        left.append(float(log_odds(after, validation.tokens).mean()))
    assert left[0] < min(-3, left[1] + 0.5)
    assert not torch.allclose(chosen.basis, frequent.basis)


def test_recognising_is_read_before_the_template_s_tokens(evidence: Evidence) -> None:
    """The token whose activations depend on the instruction alone, whatever follows it."""
    found = METHODS["harm"](evidence)
    chat = evidence.chat
    assert {one.position for one in found} == {-len(chat.post_instruction_tokens) - 1}
    means = []
    for prompts_ in (evidence.contrast.positive.train, evidence.contrast.negative.train):
        rows = []
        for prompt in prompts_:
            tokens = torch.tensor([chat.prompt_tokens(prompt)[: found[0].position + 1]])
            with torch.inference_mode():
                states = chat.model(tokens, output_hidden_states=True).hidden_states
            rows.append(states[4 + 1][0, -1].double())
        means.append(torch.stack(rows).mean(0))
    ordinary = means[1] / means[1].norm()
    vector = means[0] - means[1]
    vector = vector - (vector @ ordinary) * ordinary
    assert torch.allclose(found[4].addition, vector, atol=1e-4)


def test_the_spectrum_tells_one_direction_from_many() -> None:
    one = spectrum(3 * axis(0) + 0.01 * draw(50, 0))
    many = spectrum(torch.stack([3 * axis(i) for i in range(4)]).repeat(10, 1))
    assert one.shares[0] > 0.99
    assert one.effective_rank < 1.1
    assert many.effective_rank == pytest.approx(4.0)


def test_categories_show_how_they_lie_to_each_other(evidence: Evidence) -> None:
    found = category_directions(evidence)
    assert set(found) == {"spell", "thing"}
    table = cosines(found, 4)
    assert table["spell"]["spell"] == pytest.approx(1.0)
    # Both are refused alike in the demo model, so their directions are nearly one.
    assert 0.8 < table["spell"]["thing"] < 0.999
    with pytest.raises(ContrastError, match="categories"):
        category_directions(replace(evidence, categories={}))
