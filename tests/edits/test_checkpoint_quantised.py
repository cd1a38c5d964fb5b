"""Quantised checkpoints, edited where they lie; read back by transformers' own dequantisers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.edit import Edit, orthonormal
from abl_hub.edits.keys import CheckpointTensors
from abl_hub.edits.matrix import Rows
from abl_hub.edits.plan import plan_checkpoint, plan_model
from abl_hub.edits.shards import open_shards, read_json
from abl_hub.errors import EditError
from abl_hub.model.writers import Writer
from tests.edits import checkpoints as tiny

WIDTH, INNER, EXPERTS = 320, 256, 3
FP8_MAX = 448.0


def _direction(rank: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return orthonormal(torch.randn(rank, WIDTH, generator=generator, dtype=torch.float64))


def _edit(writer: Writer, rank: int, strength: float) -> Edit:
    return Edit(directions=_direction(rank), writers=(writer,), strengths=(strength,))


def _declare(folder: Path, quantization: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def _fp8(folder: Path) -> Writer:
    """A llama whose projections are E4M3 with one scale for each 128 × 128 block."""
    family = tiny.Family(
        model_type="llama",
        options=tiny.LLAMA.options
        | {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1},
        writers=(),
    )
    tiny.save(tiny.build(family), folder, dtype=torch.bfloat16, shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        tensors[key], tensors[f"{key}_scale_inv"] = _to_fp8(tensors[key].float())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _declare(folder, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    return Writer(parameter="model.layers.0.mlp.down_proj.weight", axis=0, shape=(WIDTH, INNER))


def _to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.zeros(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            scales[i, j] = weight[block].abs().max() / FP8_MAX
            codes[block] = (weight[block] / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales


def _from_fp8(folder: Path, key: str) -> torch.Tensor:
    tensors = load_file(folder / "model.safetensors")
    codes, scales = tensors[key].double(), tensors[f"{key}_scale_inv"].double()
    spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes * spread[: codes.shape[0], : codes.shape[1]]


def _mxfp4(folder: Path) -> Writer:
    """A gpt-oss whose experts are MXFP4, as OpenAI stores them."""
    family = tiny.Family(
        model_type="gpt_oss",
        options=tiny.GPT_OSS.options
        | {"hidden_size": WIDTH, "intermediate_size": INNER, "num_local_experts": EXPERTS}
        | {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
        writers=(),
    )
    tiny.save(tiny.build(family), folder, dtype=torch.bfloat16, shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.0.mlp.experts.{name}"
        _, columns, rows = tensors.pop(key).shape
        shape = (EXPERTS, rows, columns // 32)
        codes = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{key}_blocks"] = codes
        tensors[f"{key}_scales"] = torch.randint(
            118, 122, shape, generator=generator, dtype=torch.uint8
        )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _declare(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return Writer(
        parameter="model.layers.0.mlp.experts.down_proj", axis=2, shape=(EXPERTS, INNER, WIDTH)
    )


def _from_mxfp4(folder: Path, key: str) -> torch.Tensor:
    """In the layout of the module tree: (experts, inner, width)."""
    tensors = load_file(folder / "model.safetensors")
    dequantised: torch.Tensor = convert_moe_packed_tensors(
        tensors[f"{key}_blocks"], tensors[f"{key}_scales"], dtype=torch.float32
    )
    return dequantised.double()


FORMATS = {"fp8": (_fp8, _from_fp8), "mxfp4": (_mxfp4, _from_mxfp4)}
LEFT = {"fp8": 1e-4, "mxfp4": 2e-2}
"""Share of the base's component that may stay; nearest rounding leaves .4 and .96."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rank", "strength"), [(1, 1.0), (2, 1.0), (1, 0.5)])
def test_direction_goes_and_the_rest_stays(
    name: str, rank: int, strength: float, tmp_path: Path
) -> None:
    make, dequantised = FORMATS[name]
    source = tmp_path / "source"
    writer = make(source)
    edit = _edit(writer, rank, strength)
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    before = dequantised(source, writer.parameter)
    after = dequantised(merged.folder, writer.parameter)

    def along(weight: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(edit.directions, weight, ([1], [writer.axis]))

    wanted = (1 - strength) * along(before)
    assert along(before).norm() > 0
    assert (along(after) - wanted).norm() / along(before).norm() < LEFT[name]
    assert (after - before).norm() / before.norm() < 0.2

    old, new = (load_file(f / "model.safetensors") for f in (source, merged.folder))
    changed = {
        key
        for key in old
        if old[key].view(-1).view(torch.uint8).ne(new[key].view(-1).view(torch.uint8)).any()
    }
    codes_key = writer.parameter + ("_blocks" if name == "mxfp4" else "")
    assert changed == {codes_key}


@pytest.mark.parametrize("heavy", [2, 4, 8])
@pytest.mark.parametrize("name", FORMATS)
def test_a_direction_of_few_entries_takes_several_steps_of_each(
    name: str, heavy: int, tmp_path: Path
) -> None:
    make, dequantised = FORMATS[name]
    writer = make(tmp_path / "source")
    sparse = 0.004 * torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(4)).double()
    sparse[0, 7 : 7 + 9 * heavy : 9] += torch.linspace(1, 1.3, heavy, dtype=torch.float64)
    edit = Edit(directions=orthonormal(sparse), writers=(writer,), strengths=(1.0,))
    model = tiny.on_meta(tmp_path / "source")
    merged = write_merged(edit, tmp_path / "source", tmp_path / "out", model=model)
    before, after = (
        dequantised(folder, writer.parameter) for folder in (tmp_path / "source", merged.folder)
    )

    def along(weight: torch.Tensor) -> float:
        return float(torch.tensordot(edit.directions, weight, ([1], [writer.axis])).norm())

    assert along(after) < 0.01 * along(before)
    assert (after - before).norm() / before.norm() < 0.2


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_codes_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    make, _ = FORMATS[name]
    writer = make(tmp_path / "source")
    # Nearly one axis: reflected further out, its row leaves the range of its block's scale.
    axis = 0.02 * torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3)).double()
    axis[0, 5] += 1
    edit = Edit(directions=orthonormal(axis), writers=(writer,), strengths=(-1.0,))
    model = tiny.on_meta(tmp_path / "source")
    with pytest.raises(EditError, match="out of the range"):
        write_merged(edit, tmp_path / "source", tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_the_plan_of_the_config_is_that_of_the_files(name: str, tmp_path: Path) -> None:
    make, _ = FORMATS[name]
    writer = make(tmp_path)
    model = tiny.on_meta(tmp_path)
    found = plan_checkpoint(tmp_path, model, [writer])
    planned = plan_model(model, [writer], config=read_json(tmp_path, "config.json"))
    assert planned.bytes_read == found.bytes_read
    assert planned.bytes_written == found.bytes_written


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_read_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    make, dequantised = FORMATS[name]
    writer = make(tmp_path)
    tensors = CheckpointTensors(
        tiny.on_meta(tmp_path), open_shards(tmp_path).tensors, read_json(tmp_path, "config.json")
    )
    ((place, stored),) = tensors.read_writer(writer)
    expected = dequantised(tmp_path, writer.parameter)
    found = stored if name == "fp8" else stored.transpose(1, 2)
    assert place.axis == (0 if name == "fp8" else 1)
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(tensors.read_parameter(writer.parameter), found)
    assert tensors.unmapped_keys == ()


def test_fp8_equals_transformers_dequantiser_where_blocks_are_whole() -> None:
    codes, scales = _to_fp8(torch.randn(256, 384, generator=torch.Generator().manual_seed(0)))
    theirs = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(theirs, codes.float() * spread)


@pytest.mark.parametrize(
    "declared",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "compressed-tensors"},
        "nonsense",
    ],
)
def test_other_quantisations_are_refused(declared: object, tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.LLAMA), tmp_path / "source")
    model = tiny.on_meta(source)
    _declare(source, declared)
    with pytest.raises(EditError, match="full-precision base"):
        plan_checkpoint(source, model, tiny.writers(tiny.LLAMA, model))


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    writer = _fp8(source)
    tensors = load_file(source / "model.safetensors")
    tensors[f"{writer.parameter}_scale_inv"] = torch.ones(7, 2)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EditError, match="does not fit"):
        write_merged(_edit(writer, 1, 1.0), source, tmp_path / "out", model=tiny.on_meta(source))
    assert not (tmp_path / "out").exists()


def test_fp8_without_scales_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    writer = _fp8(source)
    tensors = load_file(source / "model.safetensors")
    del tensors[f"{writer.parameter}_scale_inv"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EditError, match="without block scales"):
        plan_checkpoint(source, tiny.on_meta(source), [writer])


def test_fp8_experts_that_are_stored_one_by_one(tmp_path: Path) -> None:
    """As DeepSeek-V3 is stored, with the layers of multi-token prediction, which stay."""
    family = tiny.Family(
        model_type="qwen3_moe",
        options=tiny.QWEN3_MOE.options
        | {"hidden_size": WIDTH, "moe_intermediate_size": INNER, "num_hidden_layers": 1}
        | {"num_experts": EXPERTS},
        writers=(),
    )
    source = tiny.save(tiny.build(family), tmp_path / "source", shard_size="1GB")
    tensors = load_file(source / "model.safetensors")
    for key in [key for key in tensors if ".experts." in key]:
        tensors[key], tensors[f"{key}_scale_inv"] = _to_fp8(tensors[key])
    spare = "model.layers.1.mlp.down_proj.weight"
    tensors[spare], tensors[f"{spare}_scale_inv"] = _to_fp8(torch.ones(WIDTH, INNER))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    _declare(source, {"quant_method": "fp8", "weight_block_size": [128, 128]})

    stem = "model.layers.0.mlp.experts"
    writer = Writer(parameter=f"{stem}.down_proj", axis=1, shape=(EXPERTS, WIDTH, INNER))
    edit = _edit(writer, 1, 1.0)
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    assert merged.edited_keys == tuple(f"{stem}.{i}.down_proj.weight" for i in range(EXPERTS))
    assert merged.left_alone_keys == (spare,)
    for key in merged.edited_keys:
        before = (edit.directions @ _from_fp8(source, key)).norm()
        assert (edit.directions @ _from_fp8(merged.folder, key)).norm() < LEFT["fp8"] * before


def test_scales_are_held_as_they_are_stored(tmp_path: Path) -> None:
    """Those of one weight of gpt-oss-120b would take 133 MB as float32, and as much in passing."""
    writer = _mxfp4(tmp_path)
    tensors = CheckpointTensors(
        tiny.on_meta(tmp_path), open_shards(tmp_path).tensors, read_json(tmp_path, "config.json")
    )
    [place] = tensors.places(writer)
    rows = Rows.of(place.matrix, place.axis)
    assert rows.scales is not None
    assert place.matrix.scales is not None
    assert rows.scales.nbytes == place.matrix.scales.size_bytes
