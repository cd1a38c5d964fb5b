"""A direction survives the disk, and a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from abl_hub.directions.direction import Direction
from abl_hub.errors import OutputError, SourceError


def direction() -> Direction:
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Direction(vector=vector, layer=3, position=-1, norm=2.5, method="projected")


def test_round_trip(tmp_path: Path) -> None:
    before = direction()
    before.save(tmp_path / "d.safetensors")
    after = Direction.load(tmp_path / "d.safetensors")
    assert after.digest == before.digest
    assert (after.layer, after.position, after.norm, after.method) == (3, -1, 2.5, "projected")


def test_it_is_a_unit_vector_and_its_own() -> None:
    vector = torch.full((4,), 2.0, dtype=torch.float64)
    made = Direction(vector=vector, layer=0, position=-1, norm=4.0, method="x")
    vector.zero_()
    assert float(made.vector.norm()) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(
    "bad", [torch.zeros(4), torch.tensor([1.0, float("nan")]), torch.ones(2, 2)]
)
def test_what_is_no_direction_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="direction"):
        Direction(vector=bad, layer=0, position=-1, norm=1.0, method="x")


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: .*No such file"):
        direction().save(tmp_path / "nowhere" / "d.safetensors")


def test_another_vector_under_the_same_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    direction().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["direction"] = tensors["direction"].flip(0).contiguous()
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(SourceError, match="digest"):
        Direction.load(path)


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensor")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    for name in ("text", "other.safetensors", "missing"):
        with pytest.raises(SourceError):
            Direction.load(tmp_path / name)


@pytest.mark.parametrize(
    ("about", "tensors", "said"),
    [
        ({"layer": None}, {}, "layer: Input should be a valid integer"),
        ({"wonder": 1}, {}, "wonder: Unexpected keyword"),
        ({}, {"more": torch.ones(1)}, "it holds direction, more"),
        ({}, {"direction": torch.zeros(16)}, "a direction cannot be zero"),
    ],
)
def test_what_is_wrong_with_a_stranger_s_file_is_told(
    about: dict[str, object], tensors: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.safetensors"
    direction().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["about"] = json.dumps({**json.loads(metadata["about"]), **about})
    save_file({**load_file(path), **tensors}, path, metadata=metadata)
    with pytest.raises(SourceError, match=f"cannot be read as a direction: {said}"):
        Direction.load(path)


def test_a_subspace_survives_the_disk(tmp_path: Path) -> None:
    eye = torch.eye(16, dtype=torch.float64)
    before = Direction(
        vector=eye[0], layer=3, position=-1, norm=2.0, method="svd", further=eye[1:3]
    )
    before.save(tmp_path / "d.safetensors")
    after = Direction.load(tmp_path / "d.safetensors")
    assert after.digest == before.digest
    assert torch.equal(after.basis, eye[:3])
    assert after.rank == 3


def test_an_oblique_direction_adds_what_it_subtracts(tmp_path: Path) -> None:
    eye = torch.eye(16, dtype=torch.float64)
    along = eye[:1] + 3 * eye[1:2]
    Direction(vector=eye[0], layer=3, position=-1, norm=2.0, method="leace", along=along).save(
        tmp_path / "d.safetensors"
    )
    after = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(after.along, along)
    assert float(after.addition.norm()) == pytest.approx(2.0)
    assert float(after.addition[1] / after.addition[0]) == pytest.approx(3.0)
