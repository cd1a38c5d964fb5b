"""What a delta costs: the time to read the writers' bytes, and to write the adapter; side by side.

    python benchmarks/delta.py [--gigabytes 3.3] [--folder DIR] [--doubled]

Makes a llama-like checkpoint of bfloat16 shards in a temporary folder on a real disk, and runs
every way in a process of its own: with the files in the page cache, and after they were dropped
from it. Each way runs `--runs` times, in turn; the table shows the median.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHARDS = 4
WIDTH, INNER, VOCABULARY = 2048, 8192, 32000
_LAYER_PARAMETERS = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER
_TARGET_RATIO = 1.3
_PIECE = 1 << 20


def layer_count(gigabytes: float) -> int:
    return max(1, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * WIDTH) / _LAYER_PARAMETERS))


def make(folder: Path, gigabytes: float) -> None:
    """A checkpoint with the layout of an untied llama, random weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layer_count(gigabytes),
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    keys, weight_map = list(state), {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = keys[shard * len(keys) // SHARDS : (shard + 1) * len(keys) // SHARDS]
        tensors = {
            key: torch.randn(state[key].shape, generator=generator).mul_(0.02).bfloat16()
            for key in part
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_bytes(source: Path, _out: Path) -> None:
    """The floor: the writers' bytes, once, in pieces."""
    model, edit = _edit(source)
    tensors = _tensors(source, model)
    for place in (place for writer in edit.writers for place in tensors.places(writer)):
        with place.matrix.codes.file.open("rb", buffering=0) as file:
            file.seek(place.matrix.codes.start)
            left = place.matrix.codes.size_bytes
            while left:
                left -= len(file.read(min(left, _PIECE)))


def delta(source: Path, out: Path) -> None:
    from abl_hub.edits.delta import write_delta
    from abl_hub.edits.delta_products import products_of_checkpoint

    model, edit = _edit(source)
    tensors = _tensors(source, model)
    write_delta(
        edit,
        out,
        model=model,
        read=tensors.read_parameter,
        product=products_of_checkpoint(tensors),
        gains={},
        base=str(source),
    )


def load_and_save(source: Path, out: Path) -> None:
    """What most tools do: load the model, let PEFT save the adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    _, edit = _edit(source)
    direction = edit.directions[0].float()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    targets = sorted({writer.parameter.split(".")[-2] for writer in edit.writers})
    wrapped = get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules=targets))
    with torch.no_grad():
        for writer in edit.writers:
            module = wrapped.base_model.model.get_submodule(
                writer.parameter.removesuffix(".weight")
            )
            weight = module.base_layer.weight.float()
            if writer.axis == 0:
                module.lora_A.default.weight.copy_((direction @ weight)[None])
                module.lora_B.default.weight.copy_(-direction[:, None])
            else:
                module.lora_embedding_A.default.copy_((weight @ direction)[None])
                module.lora_embedding_B.default.copy_(-direction[:, None])
    wrapped.save_pretrained(out, save_embedding_layers=False)


def _edit(source: Path):  # type: ignore[no-untyped-def]
    import torch

    from abl_hub.edits.edit import remove
    from abl_hub.model.meta import meta_model
    from abl_hub.model.writers import Writer

    model = meta_model(source)
    ends = {"embed_tokens.weight": 1, "o_proj.weight": 0, "down_proj.weight": 0}
    writers = tuple(
        Writer(parameter=name, axis=axis, shape=tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        for end, axis in ends.items()
        if name.endswith(end)
    )
    return model, remove(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1)), writers)


def _tensors(source: Path, model):  # type: ignore[no-untyped-def]
    from abl_hub.edits.keys import CheckpointTensors
    from abl_hub.edits.shards import CONFIG, open_shards, read_json

    return CheckpointTensors(model, open_shards(source).tensors, read_json(source, CONFIG))


WAYS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "read_bytes": ("read the writers' bytes", read_bytes),
    "delta": ("abl-hub delta", delta),
    "load_and_save": ("from_pretrained + PEFT save_pretrained", load_and_save),
}


def run_way(way: str, source: Path, out: Path, *, cold: bool) -> dict[str, float]:
    """In this process: seconds of the way, without imports, and the process's peak memory."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import abl_hub.edits.delta

    assert abl_hub.edits.delta
    if cold:
        for shard in source.glob("*.safetensors"):
            with shard.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    WAYS[way][1](source, out)
    return {
        "seconds": time.perf_counter() - began,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def measure(source: Path, folder: Path, runs: int, *, cold: bool) -> dict[str, tuple[float, float]]:
    """way → (median seconds, largest peak MB); the ways take turns and share any drift."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way, results in found.items():
            out = folder / "out"
            asked = ["--way", way, "--source", str(source), "--out", str(out)]
            done = subprocess.run(
                [sys.executable, __file__, *asked, *(["--cold"] if cold else [])],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(out, ignore_errors=True)
    return {
        way: (
            statistics.median(run["seconds"] for run in results),
            max(run["megabytes"] for run in results),
        )
        for way, results in found.items()
    }


def bench(folder: Path, gigabytes: float, runs: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.5 * gigabytes * 1e9:
        sys.exit(f"{1.5 * gigabytes:.0f} GB are needed in {folder}, {free / 1e9:.0f} GB are free")
    with tempfile.TemporaryDirectory(dir=folder, prefix="abl-hub-benchmark-") as name:
        source = Path(name) / "source"
        # In a process of its own: a child's peak memory starts at its parent's.
        subprocess.run(
            [sys.executable, __file__, "--make", str(source), "--gigabytes", str(gigabytes)],
            check=True,
        )
        os.sync()
        size = sum(shard.stat().st_size for shard in source.glob("*.safetensors"))
        layers = layer_count(gigabytes)
        held = 2 * (layers * (WIDTH * WIDTH + WIDTH * INNER) + VOCABULARY * WIDTH)
        print(
            f"\n{size / 1e9:.2f} GB, of which writers {held / 1e9:.2f} GB, {layers} layers, "
            f"{SHARDS} shards, bfloat16, {os.cpu_count()} CPU cores, median of {runs}"
        )
        for cold in (False, True):
            results = measure(source, Path(name), runs, cold=cold)
            base = results["read_bytes"][0]
            print(f"\n| {'cold' if cold else 'warm'} page cache | seconds | ratio | peak memory |")
            print("|---|---:|---:|---:|")
            for way, (seconds, megabytes) in results.items():
                ratio = seconds / base
                print(f"| {WAYS[way][0]} | {seconds:.2f} | {ratio:.2f} | {megabytes:.0f} MB |")
            reached = results["delta"][0] / base <= _TARGET_RATIO
            print(f"\ndelta ≤ {_TARGET_RATIO} × reading: {'reached' if reached else 'NOT reached'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--doubled", action="store_true", help="also twice the size")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make, options.gigabytes)
        return
    if options.way:
        print(json.dumps(run_way(options.way, options.source, options.out, cold=options.cold)))
        return
    for factor in (1, 2) if options.doubled else (1,):
        bench(options.folder, factor * options.gigabytes, options.runs)


if __name__ == "__main__":
    main()
