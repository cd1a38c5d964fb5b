"""The merged checkpoint against the same edit in memory, in float64, on a loaded model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.checkpoint_check import checkpoint_residual
from abl_hub.edits.edit import factors, remove
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from tests.edits import checkpoints as tiny
from tests.edits.checkpoints import Family

FAMILIES = {
    "llama": tiny.LLAMA,
    "llama tied": tiny.TIED,
    "gpt2": tiny.GPT2,
    "qwen3_moe": tiny.QWEN3_MOE,
    "gpt_oss": tiny.GPT_OSS,
    "gemma2": tiny.GEMMA2,
}
TIED = ("llama tied", "gpt2", "gemma2")
TOKENS = torch.tensor([[5, 9, 40, 77, 3]])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.mark.parametrize(("rank", "strength"), [(1, 1.0), (2, 0.6)])
def test_equals_the_edit_in_memory(
    family: Family, rank: int, strength: float, tmp_path: Path
) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source")
    base = tiny.load(source)
    edit = tiny.edit_of(family, base, rank=rank, strength=strength)
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    assert merged.edited_keys

    gains = {
        step.parameter: _effective_gain(base, step.parameter)
        for writer in edit.writers
        for step in writer.between
    }

    def factors_of(writer):
        found = factors(edit, writer, strength, gains)
        return found.read, found.remove

    wanted = tiny.edited_in_memory(base, edit, factors_of)
    got = dict(tiny.load(merged.folder).named_parameters())
    for name, parameter in base.named_parameters():
        if name in wanted:
            error = (got[name].double() - wanted[name]).norm() / wanted[name].norm()
            assert error <= 1e-6, name
            assert not torch.equal(got[name], parameter), name
        else:
            assert torch.equal(got[name], parameter), name


@pytest.mark.parametrize("name", TIED)
def test_untied_head_is_unchanged(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    source = tiny.save(tiny.build(family), tmp_path / "source")
    base = tiny.load(source)
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    edit = tiny.edit_of(family, base)
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    got = tiny.load(merged.folder)
    assert merged.untied
    assert not merged.changes_head
    assert torch.equal(got.get_output_embeddings().weight, base.get_input_embeddings().weight)
    embedding = got.get_input_embeddings().weight.detach().double()
    assert (embedding @ edit.directions[0]).abs().max() < 1e-6
    assert got.config.tie_word_embeddings is False
    _index_is_true(merged.folder)


def test_single_file_gets_an_index_when_a_head_joins_it(tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.TIED), tmp_path / "source", shard_size="1GB")
    base = tiny.load(source)
    edit = tiny.edit_of(tiny.TIED, base)
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    got = tiny.load(merged.folder)
    assert not (merged.folder / "model.safetensors").exists()
    assert torch.equal(got.get_output_embeddings().weight, base.get_input_embeddings().weight)
    _index_is_true(merged.folder)


def test_head_that_is_stored_although_tied_stays(tmp_path: Path) -> None:
    model = tiny.build(tiny.TIED)
    source = tiny.save_under(model, tmp_path / "source", str)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    merged = write_merged(
        tiny.edit_of(tiny.TIED, model), source, tmp_path / "out", model=tiny.on_meta(source)
    )
    got = tiny.load(merged.folder)
    assert merged.untied
    assert [f.path for f in merged.files if f.path.endswith(".safetensors")] == [
        "model.safetensors"
    ]
    assert torch.equal(got.get_output_embeddings().weight, weights["lm_head.weight"])
    assert not torch.equal(got.get_input_embeddings().weight, weights["lm_head.weight"])


def test_kept_tied_changes_the_head_and_says_so(tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.TIED), tmp_path / "source")
    edit = tiny.edit_of(tiny.TIED, tiny.load(source))
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source), untie=False)
    got = tiny.load(merged.folder)
    assert merged.changes_head
    assert not merged.untied
    assert got.get_output_embeddings().weight is got.get_input_embeddings().weight
    head = got.get_output_embeddings().weight.detach().double()
    assert (head @ edit.directions[0]).abs().max() < 1e-6


def test_gpt2_keys_without_their_prefix(tmp_path: Path) -> None:
    model = tiny.build(tiny.GPT2)
    source = tiny.save_under(
        model, tmp_path / "source", lambda name: name.removeprefix("transformer.")
    )
    edit = tiny.edit_of(tiny.GPT2, model)
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    got = tiny.load(merged.folder)
    assert torch.equal(got.lm_head.weight, model.transformer.wte.weight)
    weight = got.transformer.h[1].mlp.c_proj.weight.detach().double()
    assert (weight @ edit.directions[0]).abs().max() < 1e-6
    assert "h.1.mlp.c_proj.weight" in merged.edited_keys


def test_untied_head_of_a_wrapper(tmp_path: Path) -> None:
    """gemma3 with its vision tower: the language model's config is nested, its norms are post."""
    text = tiny.GEMMA2.options | {"layer_types": ["full_attention"] * 3}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    base = Gemma3ForConditionalGeneration(config).eval()
    base.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert base.lm_head.weight is base.get_input_embeddings().weight

    model = meta_model(tmp_path / "source")
    edit = remove(torch.randn(1, tiny.WIDTH), trace_writers(model).writers)
    merged = write_merged(edit, tmp_path / "source", tmp_path / "out", model=model)
    got = Gemma3ForConditionalGeneration.from_pretrained(merged.folder)
    assert merged.untied
    assert torch.equal(got.lm_head.weight, base.lm_head.weight)
    embedding = got.get_input_embeddings().weight.detach().double()
    assert (embedding @ edit.directions[0]).abs().max() < 1e-6
    assert checkpoint_residual(edit, merged.folder, model=meta_model(merged.folder)) < 1e-6
    _index_is_true(merged.folder)


def test_every_other_byte_stays(family: Family, tmp_path: Path) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source", dtype=torch.bfloat16)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    base = tiny.on_meta(source)
    edit = tiny.edit_of(family, base)
    merged = write_merged(edit, source, tmp_path / "out", model=base)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    changed = 0
    for name in [name for name in before if name.endswith(".safetensors")]:
        old, new = before[name], (merged.folder / name).read_bytes()
        assert len(old) == len(new)
        header_stop = 8 + int.from_bytes(old[:8], "little")
        assert old[:header_stop] == new[:header_stop]
        for key, entry in json.loads(old[8:header_stop]).items():
            if key == "__metadata__":
                continue
            start, stop = (header_stop + offset for offset in entry["data_offsets"])
            same = old[start:stop] == new[start:stop]
            assert same != (key in merged.edited_keys), key
            changed += not same
    assert changed == len(merged.edited_keys) > 0


def test_the_record_of_files_is_true(tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.TIED), tmp_path / "source")
    edit = tiny.edit_of(tiny.TIED, tiny.on_meta(source))
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    files = {file.path: file for file in merged.files}
    there = {str(p.relative_to(merged.folder)) for p in merged.folder.rglob("*") if p.is_file()}
    assert set(files) == there
    for name, file in files.items():
        content = (merged.folder / name).read_bytes()
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.size_bytes == len(content)


def test_companions_come_along_and_others_do_not(tmp_path: Path) -> None:
    source = tiny.save(tiny.build(tiny.LLAMA), tmp_path / "source")
    kept = ["tokenizer.json", "tokenizer.model", "LICENSE", "USE_POLICY.md", "Notice.txt"]
    kept += ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
    left = ["README.md", "pytorch_model.bin", "training_args.bin", "consolidated.00.pth"]
    left += ["pytorch_model.bin.index.json", "licence.pt", "modeling_llama.py", ".env"]
    for name in kept + left:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    edit = tiny.edit_of(tiny.LLAMA, tiny.on_meta(source))
    merged = write_merged(edit, source, tmp_path / "out", model=tiny.on_meta(source))
    names = {file.path for file in merged.files}
    assert names >= set(kept)
    assert not names & set(left)


def test_hub_cache_is_only_read(tmp_path: Path) -> None:
    """A snapshot of links into blobs, as huggingface_hub lays it out."""
    plain = tiny.save(tiny.build(tiny.TIED), tmp_path / "plain")
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / "0123abc"
    blobs = repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in plain.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blobs / digest)
        (blobs / digest).chmod(0o444)
        (snapshot / file.name).symlink_to(Path("../../blobs") / digest)
    edit = tiny.edit_of(tiny.TIED, tiny.on_meta(snapshot))
    merged = write_merged(edit, snapshot, tmp_path / "out", model=tiny.on_meta(snapshot))
    for blob in blobs.iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        assert blob.stat().st_nlink == 1
    for file in merged.folder.iterdir():
        assert not file.is_symlink()
        assert file.stat().st_mode & 0o200
    tiny.load(merged.folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cancelling_leaves_a_thousandth_of_what_nearest_leaves(
    dtype: torch.dtype, family: Family, tmp_path: Path
) -> None:
    source = tiny.save(tiny.build(family), tmp_path / "source", dtype=dtype)
    model = tiny.on_meta(source)
    edit = tiny.edit_of(family, model)
    plain = [w for w in edit.writers if not w.between and len(w.shape) > 1]
    left = {}
    for rounding in ("nearest", "cancelling"):
        merged = write_merged(
            edit, source, tmp_path / rounding, model=tiny.on_meta(source), rounding=rounding
        )
        got = dict(tiny.load(merged.folder, dtype).named_parameters())
        left[rounding] = [
            float(
                torch.tensordot(
                    edit.directions, got[w.parameter].detach().double(), ([1], [w.axis])
                ).norm()
                / got[w.parameter].detach().double().norm()
            )
            for w in plain
        ]
    assert plain
    for nearest, cancelling in zip(left["nearest"], left["cancelling"], strict=True):
        assert cancelling < nearest / 20


def _index_is_true(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    size_bytes = 0
    for name in set(index["weight_map"].values()):
        with safe_open(folder / name, framework="pt") as shard:
            assert set(shard.keys()) == {k for k, n in index["weight_map"].items() if n == name}
            size_bytes += sum(shard.get_tensor(key).nbytes for key in shard.keys())  # noqa: SIM118
    assert index["metadata"]["total_size"] == size_bytes


def _effective_gain(model, name):
    """Gemma's norms multiply by 1 + w."""
    return 1.0 + dict(model.named_parameters())[name].detach().double()
