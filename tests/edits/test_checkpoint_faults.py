"""Damaged, lying and hostile checkpoints: one clear line, nothing written, nothing read outside."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abl_hub.edits import checkpoint, staging
from abl_hub.edits.checkpoint import write_files, write_merged
from abl_hub.edits.merged_files import MergedFiles
from abl_hub.edits.safetensors_file import read_header
from abl_hub.edits.shards import open_shards
from abl_hub.errors import AblHubError, EditError, OutputError, SourceError
from abl_hub.progress import Advance, Silent
from tests.edits import checkpoints as tiny

Header = dict[str, object]
INDEX = "model.safetensors.index.json"


def _file(path: Path, header: Header | bytes, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def _tensor(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


BODY = bytes(32)
MALFORMED: dict[str, tuple[Header | bytes, bytes, int | None]] = {
    "overlap": ({"a": _tensor(0, 16, [4]), "b": _tensor(8, 24, [4])}, bytes(24), None),
    "out of range": ({"a": _tensor(0, 64, [16])}, BODY, None),
    "negative": ({"a": _tensor(-8, 24, [8])}, BODY, None),
    "backwards": ({"a": _tensor(32, 0, [8])}, BODY, None),
    "huge offsets": ({"a": _tensor(2**63, 2**63 + 32, [8])}, BODY, None),
    "overflowing shape": ({"a": _tensor(0, 32, [2**62, 2**3])}, BODY, None),
    "overflow to the size": ({"a": _tensor(0, 32, [2**61 + 1, 8])}, BODY, None),
    "shape and size differ": ({"a": _tensor(0, 32, [9])}, BODY, None),
    "zero-size reuse": ({"a": _tensor(0, 0, [8]), "b": _tensor(0, 32, [8])}, BODY, None),
    "hole": ({"a": _tensor(8, 40, [8])}, bytes(40), None),
    "trailing bytes": ({"a": _tensor(0, 32, [8])}, BODY + b"more", None),
    "truncated": ({"a": _tensor(0, 32, [8])}, BODY[:-1], None),
    "key twice": (
        b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},'
        b'"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}',
        BODY,
        None,
    ),
    "field twice": (
        b'{"a":{"dtype":"F32","shape":[8],"shape":[8],"data_offsets":[0,32]}}',
        BODY,
        None,
    ),
    "absurd length": ({"a": _tensor(0, 32, [8])}, BODY, 2**63),
    "length beyond the file": ({"a": _tensor(0, 32, [8])}, BODY, 10**6),
    "length 0": ({"a": _tensor(0, 32, [8])}, BODY, 0),
    "not JSON": (b"{nothing", BODY, None),
    "not an object": (b"[1, 2]", BODY, None),
    "not UTF-8": (b'{"\xff\xfe": 1}', BODY, None),
    "unknown dtype": ({"a": _tensor(0, 32, [8], "F31")}, BODY, None),
    "metadata that is no text": (
        {"__metadata__": {"a": 1}, "a": _tensor(0, 32, [8])},
        BODY,
        None,
    ),
    "NaN in the header": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,32]}}', BODY, None),
    "deep": (b"[" * 100_000 + b"]" * 100_000, BODY, None),
    "empty": (b"", b"", 0),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_one_line(name: str, tmp_path: Path) -> None:
    header, body, length = MALFORMED[name]
    path = _file(tmp_path / "model.safetensors", header, body, length)
    with pytest.raises(SourceError) as refusal:
        read_header(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_well_formed_file_is_read(tmp_path: Path) -> None:
    header = {"b": _tensor(4, 32, [7]), "a": _tensor(0, 4, [1]), "none": _tensor(0, 0, [0, 3])}
    path = _file(tmp_path / "model.safetensors", header, BODY)
    found = {tensor.key: tensor.shape for tensor in read_header(path)}
    assert found == {"a": (1,), "b": (7,), "none": (0, 3)}


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x00" * 7, b"\xff" * 8, b"PK\x03\x04" * 10])
def test_short_and_foreign_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceError):
        read_header(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "source"
    return tiny.save(tiny.build(tiny.LLAMA), folder)


def _merge(source: Path, out: Path, **options: object) -> checkpoint.Merged:
    model = tiny.on_meta(source)
    return write_merged(tiny.edit_of(tiny.LLAMA, model), source, out, model=model, **options)


def _refused(source: Path, match: str, error: type[AblHubError] = SourceError) -> None:
    """The merge refuses in one line, and leaves nothing."""
    out = source.parent / "out"
    with pytest.raises(error, match=match) as refusal:
        _merge(source, out)
    assert "\n" not in str(refusal.value)
    assert sorted(
        entry.name for entry in source.parent.iterdir() if "outside" not in entry.name
    ) == [source.name]


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(source, tmp_path / "work" / "source"))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _shard_of(folder: Path, key: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][key]


def _change(folder: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    shard = _shard_of(folder, key)
    tensors = load_file(shard)
    tensors[key] = change(tensors[key])
    save_file(tensors, shard, metadata={"format": "pt"})


def test_truncated_shard(broken: Path) -> None:
    shard = _shards(broken)[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    _refused(broken, "not a whole safetensors file")


def test_missing_shard(broken: Path) -> None:
    _shards(broken)[1].unlink()
    _refused(broken, "is missing")


def test_index_that_names_another_shard(broken: Path) -> None:
    index = json.loads((broken / INDEX).read_text())
    names = sorted(set(index["weight_map"].values()))
    key = next(k for k, name in index["weight_map"].items() if name == names[0])
    index["weight_map"][key] = names[1]
    (broken / INDEX).write_text(json.dumps(index))
    _refused(broken, "and it does not")


def test_index_that_names_a_key_nobody_has(broken: Path) -> None:
    index = json.loads((broken / INDEX).read_text())
    index["weight_map"]["model.invented"] = _shards(broken)[0].name
    (broken / INDEX).write_text(json.dumps(index))
    _refused(broken, "and it does not")


def test_key_in_two_shards(broken: Path) -> None:
    first, second = _shards(broken)[:2]
    key, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {key: tensor}, second, metadata={"format": "pt"})
    _refused(broken, "stored twice")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..\\outside.safetensors",
        "model.bin",
        "",
        ".safetensors",
        "a\n.safetensors",
        "a\0.safetensors",
        "x" * 300 + ".safetensors",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_index_that_leads_outside(name: object, broken: Path) -> None:
    shutil.copy(_shards(broken)[0], broken.parent / "outside.safetensors")
    index = json.loads((broken / INDEX).read_text())
    key = next(iter(index["weight_map"]))
    index["weight_map"][key] = name
    (broken / INDEX).write_text(json.dumps(index))
    _refused(broken, "not a safetensors file of the folder")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_that_is_none(text: str, broken: Path) -> None:
    (broken / INDEX).write_text(text)
    _refused(broken, INDEX)


def test_no_weights(broken: Path) -> None:
    for shard in _shards(broken):
        shard.unlink()
    (broken / INDEX).unlink()
    (broken / "pytorch_model.bin").write_bytes(b"never opened")
    _refused(broken, "no safetensors weights")


def test_link_out_of_the_folder(broken: Path) -> None:
    shard = _shards(broken)[0]
    shard.rename(broken.parent / "outside.safetensors")
    shard.symlink_to(broken.parent / "outside.safetensors")
    _refused(broken, "leads out of the model's folder")


def test_link_to_a_secret_beside_the_weights(broken: Path) -> None:
    (broken.parent / "outside.txt").write_text("a secret")
    (broken / "LICENSE").symlink_to(broken.parent / "outside.txt")
    _refused(broken, "leads out of the model's folder")


def test_link_to_itself(broken: Path) -> None:
    shard = _shards(broken)[0]
    shard.unlink()
    shard.symlink_to(shard)
    _refused(broken, "is missing")


def test_pipe_instead_of_a_shard(broken: Path) -> None:
    shard = _shards(broken)[0]
    shard.unlink()
    os.mkfifo(shard)
    _refused(broken, "not a regular file")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "key", ["model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"]
)
def test_not_finite_names_the_tensor(value: float, key: str, broken: Path) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3, 4] = value
        return tensor

    _change(broken, key, spoil)
    _refused(broken, f"{key} holds NaN or infinity", EditError)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int32])
def test_dtype_that_cannot_be_edited(dtype: torch.dtype, broken: Path) -> None:
    _change(broken, "model.layers.0.mlp.down_proj.weight", lambda tensor: tensor.to(dtype))
    _refused(broken, "down_proj.weight is stored as", EditError)


def test_shape_of_another_model(broken: Path) -> None:
    key = "model.layers.0.mlp.down_proj.weight"
    _change(broken, key, lambda tensor: tensor[:, :-1].contiguous())
    _refused(broken, "config.json asks for")


def test_writer_that_the_checkpoint_lacks(broken: Path) -> None:
    key = "model.layers.0.mlp.down_proj.weight"
    shard = _shard_of(broken, key)
    tensors = load_file(shard)
    del tensors[key]
    save_file(tensors, shard, metadata={"format": "pt"})
    index = json.loads((broken / INDEX).read_text())
    del index["weight_map"][key]
    (broken / INDEX).write_text(json.dumps(index))
    _refused(broken, f"no weights for {key}")


def test_experts_that_are_missing(tmp_path: Path) -> None:
    model = tiny.build(tiny.QWEN3_MOE)
    source = tiny.save(model, tmp_path / "source", shard_size="1GB")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.experts.10.down_proj.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    meta = tiny.on_meta(source)
    with pytest.raises(SourceError, match="does not hold all of"):
        write_merged(tiny.edit_of(tiny.QWEN3_MOE, meta), source, tmp_path / "out", model=meta)


def test_unknown_tensors_stay_and_are_reported(broken: Path) -> None:
    shard = _shards(broken)[-1]
    extra = "model.layers.9.eh_proj.weight"
    save_file(load_file(shard) | {extra: torch.ones(3, 5)}, shard, metadata={"format": "pt"})
    index = json.loads((broken / INDEX).read_text())
    index["weight_map"][extra] = shard.name
    (broken / INDEX).write_text(json.dumps(index))
    merged = _merge(broken, broken.parent / "out")
    assert merged.left_alone_keys == (extra,)
    assert torch.equal(load_file(merged.folder / shard.name)[extra], torch.ones(3, 5))


def test_output_that_is_taken(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="is there already"):
        _merge(source, out)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_full_disk_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _folder: usage)
    monkeypatch.setattr(checkpoint, "clone", lambda _source, target: target.touch() or False)
    with pytest.raises(OutputError, match="GB are needed"):
        _merge(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_write_that_fails_half_way_is_one_line_and_leaves_nothing(
    source: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            _merge(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_fails_stops_the_others(source: Path, tmp_path: Path) -> None:
    """Two are written at a time; what has not begun never does."""
    begun: list[str] = []

    class Failing(MergedFiles):
        def write(self, name: str, folder: Path, advance: Advance = lambda _: None) -> Path:
            begun.append(name)
            if len(begun) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            for _ in range(30_000):
                time.sleep(0.001)
                advance(0)  # raises once another part has failed
            raise AssertionError("it was not stopped")

    model = tiny.on_meta(source)
    files = Failing(tiny.edit_of(tiny.LLAMA, model), source, model=model)
    assert len(files.weights) > 4
    with pytest.raises(OutputError, match="No space left"):
        write_files(files, tmp_path / "out")
    assert len(begun) <= 3
    assert not (tmp_path / "out").exists()


def test_interrupted_merge_leaves_nothing(source: Path, tmp_path: Path) -> None:
    class Interrupting(Silent):
        def stage(self, name: str, total: int | None = None):  # type: ignore[no-untyped-def]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _merge(source, tmp_path / "out", progress=Interrupting())
    assert list(tmp_path.iterdir()) == []


def test_what_safetensors_cannot_write_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: .*No such file"):
        with staging.staging(tmp_path / "out") as stage:
            save_file({"a": torch.zeros(1)}, stage.folder / "nowhere" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_names_with_wildcards_are_names(tmp_path: Path) -> None:
    for name in ("out[1]", "out*", "other"):
        (tmp_path / f".{name}.partial-abandoned").mkdir()
    for name in ("out[1]", "out*"):
        with staging.staging(tmp_path / name):
            assert not (tmp_path / f".{name}.partial-abandoned").exists()
    assert [folder.name for folder in tmp_path.iterdir()] == [".other.partial-abandoned"]


def test_abandoned_sibling_is_removed_and_a_live_one_is_not(source: Path, tmp_path: Path) -> None:
    abandoned = tmp_path / ".out.partial-abandoned"
    abandoned.mkdir()
    with staging.staging(tmp_path / "out") as live:
        _merge(source, tmp_path / "other")
        with staging.staging(tmp_path / "out"):
            assert live.folder.is_dir()
            assert not abandoned.exists()


numbers = st.one_of(
    st.integers(-8, 80), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 2**64 + 16])
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F8_E4M3", "F4", "X", 3]),
        "shape": st.lists(numbers, max_size=4),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
)
headers = st.dictionaries(
    st.text(max_size=8) | st.just("__metadata__"), entries | st.none() | numbers, max_size=4
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(header=headers, body=st.binary(max_size=80), length=st.none() | numbers)
def test_any_header_is_read_or_refused(
    header: dict[str, object],
    body: bytes,
    length: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    _file(path, header, body, None if length is None else length % 2**64)
    _read_or_refused(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_read_or_refused(
    source: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(_shards(source)[0].read_bytes())
    header_stop = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_stop - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    _read_or_refused(path)


def _read_or_refused(path: Path) -> None:
    try:
        tensors = read_header(path)
    except SourceError:
        return
    size_bytes = path.stat().st_size
    begin = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for tensor in tensors:
        assert begin <= tensor.start <= tensor.stop <= size_bytes


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.just("../x.safetensors"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(weight_map=json_values | st.dictionaries(st.text(max_size=6), json_values), junk=json_values)
def test_any_index_is_refused(
    weight_map: object, junk: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-index"
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps({"metadata": junk, "weight_map": weight_map}))
    with pytest.raises(SourceError):
        open_shards(folder)
