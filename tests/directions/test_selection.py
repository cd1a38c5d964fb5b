"""Selection drops candidates early, and still finds the paper's winner with the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from abl_hub.demo.corpus import prompts
from abl_hub.demo.train import TrainingRecipe, demo_model
from abl_hub.directions.contrast import make_contrast
from abl_hub.directions.evidence import Evidence
from abl_hub.directions.jury import Jury, Scores
from abl_hub.directions.means import mean_activations
from abl_hub.directions.methods import METHODS
from abl_hub.directions.proposal import Proposal, single
from abl_hub.directions.race import Thresholds, race
from abl_hub.directions.rounds import side
from abl_hub.directions.selection import behaviour_tokens, log_odds, select, validate
from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import applied
from abl_hub.model.chat import load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.generate import next_token_log_probs
from abl_hub.model.trace import trace_writers
from benchmarks.counting import counted
from benchmarks.plain_selection import plain_selection


def compare(folder: Path, method: str) -> float:
    """Assert the same winner as the plain loop; how many times fewer forward tokens it took."""
    chat = load_chat_model(folder)
    asked = prompts()
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive], [prompt for prompt, _ in asked.negative]
    )
    means = mean_activations(chat, contrast)
    tokens = behaviour_tokens(means)
    evidence = Evidence(chat=chat, contrast=contrast, means=means, behaviour_tokens=tokens)
    proposals = METHODS[method](evidence)
    writers = trace_writers(chat.model).writers
    between = gains(chat.model, writers)

    def ablate(proposal: Proposal) -> AbstractContextManager[None]:
        return applied(remove(proposal.basis, writers), chat.model, between)

    with counted(chat) as plain:
        validation = validate(chat, contrast, tokens)
        expected, judged = plain_selection(chat, proposals, validation, ablate)
    with counted(chat) as ours:
        validation = validate(chat, contrast, tokens)
        found = select(chat, proposals, validation, method=method, ablate=ablate)
    winner = found.chosen
    assert (winner.layer, winner.position) == (
        expected.proposal.layer,
        expected.proposal.position,
    )
    assert winner.bypass == pytest.approx(expected.bypass, abs=1e-4)
    assert winner.induce == pytest.approx(expected.induce, abs=1e-4)
    assert winner.kl == pytest.approx(expected.kl, abs=1e-4)
    assert winner.prompts is None
    assert len(found.candidates) == len(judged)
    return plain.tokens / ours.tokens


def test_same_winner_for_a_fifth_of_the_tokens(demo: Path) -> None:
    assert compare(demo, "projected") >= 5.0


def test_same_winner_where_no_candidate_meets_the_thresholds(demo: Path) -> None:
    assert compare(demo, "difference") >= 5.0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "qwen2"])
def test_same_winner_on_other_architectures(architecture: str) -> None:
    # No candidate of the qwen2 model meets all thresholds, and there are two races.
    assert compare(demo_model(TrainingRecipe(architecture=architecture)), "projected") >= 5.0


@pytest.mark.parametrize("packs", [False, True])
def test_a_side_keeps_its_order_and_drops_what_is_not_typical(demo: Path, packs: bool) -> None:
    chat = load_chat_model(demo)
    asked = [prompt for prompt, _ in prompts().positive[:11]]
    whole = side(chat, asked, rows=32, packs=packs)
    assert torch.allclose(whole.log_probs, next_token_log_probs(chat, asked), atol=1e-4)
    kept = [index % 3 != 0 for index in range(11)]
    part = whole.only(kept)
    assert torch.allclose(part.log_probs, whole.log_probs[kept])
    assert [sum(len(b.last) for b in batches) for batches in part.rounds] == [2, 3, 2]


class Told(Jury):
    """A jury whose scores are given: (induce, kl, bypass) of each proposal's layer."""

    def __init__(self, scores: Sequence[tuple[list[float], list[float], list[float]]]) -> None:
        self.scores = scores
        self.unedited = [-6.0] * 16
        self.asked = 0

    @property
    def rounds(self) -> int:
        return 3

    def before(self, _name: str, number: int) -> int:
        return (0, 4, 8, 16)[number]

    def _part(self, layer: int, which: int, number: int) -> list[float]:
        start, size = (0, 4, 8)[number], (4, 4, 8)[number]
        self.asked += size
        return self.scores[layer][which][start : start + size]

    def induce(self, layer: int, vectors: torch.Tensor, number: int) -> list[list[float]]:
        return [self._part(layer, 0, number) for _ in vectors]

    def kl(self, proposal: Proposal, number: int) -> list[float]:
        return self._part(proposal.layer, 1, number)

    def bypass(self, proposal: Proposal, number: int) -> list[float]:
        return self._part(proposal.layer, 2, number)


def spread(value: float, width: float = 0.1) -> list[float]:
    return [value + width * ((i % 4) - 1.5) for i in range(16)]


def field(count: int) -> list[Scores]:
    return [Scores(proposal=single(torch.ones(2).double(), layer, -1)) for layer in range(count)]


def test_certain_openings_have_log_odds() -> None:
    """A share that float32 rounds to 1, and words that the model rules out."""
    logits = torch.tensor([[30.0, 29.0, 0.0, -1.0], [-30.0, -31.0, 0.0, 1.0], [1.0, 0.0, 2.0, 1.0]])
    logits = torch.cat([logits, torch.full((3, 1), -torch.inf)], dim=1)
    found = log_odds(logits.log_softmax(-1), (0, 1))
    exact = logits.double()
    expected = exact[:, :2].logsumexp(-1) - exact[:, 2:].logsumexp(-1)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert log_odds(logits[:1].log_softmax(-1), (0, 1, 2, 3)).tolist() == [100.0]


def test_who_is_level_with_the_leader_is_out_in_the_end() -> None:
    """Its KL was never asked for, so that it cannot be compared with the leader's."""
    told = (spread(1.0), [0.01] * 16, spread(-5.0))
    scores = field(2)
    race(Told([told, told]), scores, Thresholds(kl=0.1, induce=0.0))
    assert [one.out is None for one in scores] == [True, False]


def test_a_leader_that_fails_in_the_end_gives_back_those_that_it_beat() -> None:
    late = [0.01] * 4 + [0.5] * 12
    jury = Told(
        [
            (spread(1.0), late, spread(-9.0)),
            (spread(1.0), [0.01] * 16, spread(-5.0)),
            (spread(-3.0), [0.01] * 16, spread(-8.0)),
        ]
    )
    scores = field(3)
    race(jury, scores, Thresholds(kl=0.1, induce=0.0))
    assert [one.out is None for one in scores] == [False, True, False]
    assert len(scores[1].bypass) == 16
    assert scores[2].bypass == []


def test_what_is_close_is_judged_on_all_prompts() -> None:
    jury = Told(
        [
            (spread(1.0), [0.01] * 16, [-5.0 + (0.5 if i % 2 else -0.5) for i in range(16)]),
            (spread(1.0), [0.01] * 16, [-5.01 + (0.5 if i % 3 else -0.5) for i in range(16)]),
        ]
    )
    scores = field(2)
    race(jury, scores, Thresholds(kl=0.1, induce=0.0))
    assert all(len(one.bypass) == 16 for one in scores)


def test_a_bystander_does_not_win_over_those_whom_a_failed_leader_had_beaten() -> None:
    late = [0.01] * 8 + [0.5] * 8
    jury = Told(
        [
            (spread(1.0), late, [-5.0, -5.1] * 8),
            (spread(1.0), [0.01] * 16, [-3.0, -3.1] * 8),
            # Too scattered to be beaten before the last prompts are in.
            (spread(1.0), [0.01] * 16, [-30.0, 30.0] * 8),
        ]
    )
    scores = field(3)
    race(jury, scores, Thresholds(kl=0.1, induce=0.0))
    assert [one.out is None for one in scores] == [False, True, False]
