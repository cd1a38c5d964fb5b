"""The algebra: the component is gone, a random direction's is not, and the rest stays."""

from __future__ import annotations

import pytest
import torch

from abl_hub.edits.edit import Edit, Factors, factors, orthonormal, remove
from abl_hub.errors import EditError
from abl_hub.model.writers import Centre, Gain, Writer

WIDTH = 24


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def change(weight: torch.Tensor, axis: int, low_rank: Factors) -> torch.Tensor:
    moved = weight.movedim(axis, -1)
    return (moved - (moved @ low_rank.read.T) @ low_rank.remove).movedim(-1, axis)


def writer(axis: int = 0, between: tuple[Gain | Centre, ...] = ()) -> Writer:
    return Writer(parameter="w", axis=axis, shape=(WIDTH, WIDTH), between=between)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rank", [1, 3])
def test_plain_writers_lose_the_directions_and_nothing_else(axis: int, rank: int) -> None:
    weight = random(WIDTH, WIDTH)
    edit = remove(random(rank, WIDTH, seed=1), (writer(axis),))
    edited = change(weight, axis, factors(edit, edit.writers[0], 1.0, {}))
    along = edit.directions @ edited.movedim(axis, 0)
    assert float(along.abs().max()) < 1e-12
    other = orthonormal(torch.cat([edit.directions, random(1, WIDTH, seed=2)]))[-1]
    assert torch.allclose(other @ edited.movedim(axis, 0), other @ weight.movedim(axis, 0))


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_strength_scales_the_component(strength: float) -> None:
    weight = random(WIDTH, WIDTH)
    edit = remove(random(1, WIDTH, seed=1), (writer(),), strength)
    edited = change(weight, 0, factors(edit, edit.writers[0], strength, {}))
    r = edit.directions[0]
    assert torch.allclose(r @ edited, (1 - strength) * (r @ weight), atol=1e-12)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_behind_a_norm_the_stream_is_clean_and_closer_to_runtime_ablation(spread: float) -> None:
    gain = (spread * random(WIDTH, seed=3)).exp()
    behind = writer(between=(Gain(parameter="norm.weight"),))
    edit = remove(random(1, WIDTH, seed=1), (behind,))
    low_rank = factors(edit, behind, 1.0, {"norm.weight": gain})
    x = random(64, WIDTH, seed=4)

    def written(y: torch.Tensor) -> torch.Tensor:
        return gain * y / y.square().mean(-1, keepdim=True).sqrt()

    r = edit.directions[0]
    edited = written(x - (x @ low_rank.read.T) @ low_rank.remove)
    assert float((edited @ r).abs().max()) < 1e-12
    wanted = written(x) - torch.outer(written(x) @ r, r)
    v = gain * r / (gain * r).norm()
    plain = written(x - torch.outer(x @ v, v))
    assert float((edited - wanted).norm()) <= float((plain - wanted).norm())


def test_behind_a_layer_norm_the_stream_is_clean() -> None:
    gain, bias = random(WIDTH, seed=3) + 1, None
    behind = writer(between=(Gain(parameter="g"), Centre()))
    edit = remove(random(1, WIDTH, seed=1), (behind,))
    low_rank = factors(edit, behind, 1.0, {"g": gain})
    x = random(64, WIDTH, seed=4)
    edited = x - (x @ low_rank.read.T) @ low_rank.remove
    written = torch.nn.functional.layer_norm(edited, (WIDTH,), gain, bias)
    assert float((written @ edit.directions[0]).abs().max()) < 1e-10


def test_a_direction_that_the_gains_hide_is_refused() -> None:
    gain = torch.ones(WIDTH, dtype=torch.float64)
    gain[0] = 0.0
    behind = writer(between=(Gain(parameter="g"),))
    edit = remove(torch.eye(WIDTH, dtype=torch.float64)[0], (behind,))
    with pytest.raises(EditError, match="cancel"):
        factors(edit, behind, 1.0, {"g": gain})


def test_dependent_directions_are_refused() -> None:
    r = random(1, WIDTH)
    with pytest.raises(EditError, match="dependent"):
        orthonormal(torch.cat([r, 2 * r]))


def test_the_digest_is_the_edit_s_identity() -> None:
    one = remove(random(1, WIDTH), (writer(),))
    same = remove(random(1, WIDTH), (writer(),))
    other = remove(random(1, WIDTH), (writer(),), 0.5)
    assert one.digest == same.digest != other.digest
    with pytest.raises(ValueError, match="strengths"):
        Edit(directions=one.directions, writers=one.writers, strengths=())


def test_a_range_of_layers_leaves_the_others() -> None:
    writers = tuple(
        Writer(parameter=f"w{layer}", axis=0, shape=(WIDTH, WIDTH), layer=layer)
        for layer in (None, 0, 1, 2, 3)
    )
    r = random(1, WIDTH)
    assert remove(r, writers, layers=(1, 2)).strengths == (0.0, 0.0, 1.0, 1.0, 0.0)
    assert remove(r, writers, 0.5, layers=(0, 1)).strengths == (0.5, 0.5, 0.5, 0.0, 0.0)
    with pytest.raises(EditError, match="layers 7 to 9"):
        remove(r, writers, layers=(7, 9))


def test_an_oblique_edit_has_the_same_null_and_subtracts_what_it_is_told() -> None:
    weight = random(WIDTH, WIDTH)
    r = orthonormal(random(1, WIDTH, seed=1))
    u = random(1, WIDTH, seed=5)
    u = u / (r @ u.T)
    edit = remove(r, (writer(),), along=u)
    edited = change(weight, 0, factors(edit, edit.writers[0], 1.0, {}))
    assert float((r @ edited).abs().max()) < 1e-12
    assert torch.allclose(weight - edited, torch.outer(u[0], r[0] @ weight))
    assert edit.digest != remove(r, (writer(),)).digest
    with pytest.raises(ValueError, match="identity"):
        remove(r, (writer(),), along=2 * u)


def test_an_oblique_edit_behind_a_norm_cleans_the_stream() -> None:
    gain = (0.5 * random(WIDTH, seed=3)).exp()
    behind = writer(between=(Gain(parameter="norm.weight"),))
    r = orthonormal(random(2, WIDTH, seed=1))
    u = r + 0.1 * random(2, WIDTH, seed=5)
    u = torch.linalg.solve(u @ r.T, u)
    edit = remove(r, (behind,), along=u)
    low_rank = factors(edit, behind, 1.0, {"norm.weight": gain})
    x = random(64, WIDTH, seed=4)
    edited = gain * (x - (x @ low_rank.read.T) @ low_rank.remove)
    assert float((edited @ r.T).abs().max()) < 1e-12


def test_an_oblique_edit_behind_a_layer_norm_subtracts_what_it_is_told() -> None:
    between = (Gain(parameter="g"), Centre())
    gain = 1 + 0.1 * random(WIDTH, seed=3)
    directions = orthonormal(random(1, WIDTH))
    along = directions + 0.8 * orthonormal(random(1, WIDTH, seed=1))
    along = along / (along @ directions.T)
    edit = remove(directions, (writer(between=between),), along=along)
    found = factors(edit, edit.writers[0], 1.0, {"g": gain})
    writes = random(512, WIDTH, seed=4)

    def normed(y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean(dim=-1, keepdim=True)
        return gain * centred / centred.square().mean(dim=-1, keepdim=True).sqrt()

    got = normed(writes - (writes @ found.read.T) @ found.remove)
    assert float((got @ directions.T).abs().max()) < 1e-12

    def apart(subtracted: torch.Tensor) -> float:
        wanted = normed(writes) - normed(writes) @ directions.T @ subtracted
        return float((got - wanted).norm() / normed(writes).norm())

    assert apart(along) < 0.5 * apart(directions)
