"""What an edited checkpoint costs: cp, our merge, our delta and load–edit–save, side by side.

    python benchmarks/merge.py [--gigabytes 3.3] [--folder DIR] [--doubled]

Makes a llama-like checkpoint of bfloat16 shards in a temporary folder on a real disk, runs every
way in a process of its own (so that its peak memory is its own), and removes everything. Each way
runs `--runs` times, in turn. The page cache is warm, but where it says "from the disk".
"""

from __future__ import annotations

import argparse
import importlib.util
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
_TARGET_RATIO, _TARGET_MEGABYTES = 1.3, 700


def layer_count(gigabytes: float) -> int:
    return max(1, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * WIDTH) / _LAYER_PARAMETERS))


def make(folder: Path, gigabytes: float) -> None:
    """A checkpoint with the layout of an untied llama."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    layers = layer_count(gigabytes)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {
            k: v.shape for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    generator = torch.Generator().manual_seed(0)
    keys = list(shapes)
    weight_map, total = {}, 0
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = keys[shard * len(keys) // SHARDS : (shard + 1) * len(keys) // SHARDS]
        tensors = {
            key: torch.randn(shapes[key], generator=generator).mul_(0.02).bfloat16() for key in part
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def copy(source: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)


def merge(source: Path, out: Path) -> None:
    from abl_hub.edits.checkpoint import write_merged

    model, edit = _edit(source)
    write_merged(edit, source, out, model=model)


def merge_cancelling(source: Path, out: Path) -> None:
    from abl_hub.edits.checkpoint import write_merged

    model, edit = _edit(source)
    write_merged(edit, source, out, model=model, rounding="cancelling")


def delta(source: Path, out: Path) -> None:
    from abl_hub.edits.delta import write_delta
    from abl_hub.edits.delta_products import products_of_checkpoint
    from abl_hub.edits.keys import CheckpointTensors
    from abl_hub.edits.shards import open_shards

    model, edit = _edit(source)
    tensors = CheckpointTensors(model, open_shards(source).tensors, {})
    write_delta(
        edit,
        out,
        model=model,
        read=tensors.read_parameter,
        gains={},
        base=str(source),
        profile="portable",
        product=products_of_checkpoint(tensors),
    )


def read_writers(source: Path, out: Path) -> None:
    """The floor of a delta: the bytes of the tensors that it is made of, and nothing else."""
    from abl_hub.edits.shards import open_shards

    tensors = open_shards(source).tensors
    buffer = memoryview(bytearray(1 << 20))
    for key, tensor in tensors.items():
        if key.endswith(("o_proj.weight", "down_proj.weight")):
            with tensor.file.open("rb", buffering=0) as file:
                file.seek(tensor.start)
                left = tensor.size_bytes
                while left:
                    left -= file.readinto(buffer[: min(left, len(buffer))])
    out.mkdir()


def load_edit_save(source: Path, out: Path) -> None:
    """What most tools do."""
    import torch
    from transformers import AutoModelForCausalLM

    _, edit = _edit(source)
    direction = edit.directions[0].float()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for writer in edit.writers:
            weight = parameters[writer.parameter]
            exact = weight.float().movedim(writer.axis, 0)
            exact -= torch.outer(direction, direction @ exact)
            weight.copy_(exact.movedim(0, writer.axis))
    model.save_pretrained(out)


def _edit(source: Path):  # type: ignore[no-untyped-def]
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from abl_hub.edits.edit import remove
    from abl_hub.model.writers import Writer

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    ends = {"embed_tokens.weight": 1, "o_proj.weight": 0, "down_proj.weight": 0}
    writers = tuple(
        Writer(parameter=name, axis=axis, shape=tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        for end, axis in ends.items()
        if name.endswith(end)
    )
    direction = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    return model, remove(direction, writers)


WAYS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "copy": ("cp -r", copy),
    "merge": ("abl-hub merge", merge),
    "merge_cancelling": ("abl-hub merge, direction-cancelling rounding", merge_cancelling),
    "read_writers": ("read the bytes of o_proj and down_proj", read_writers),
    "delta": ("abl-hub delta, portable", delta),
    "cold_read_writers": ("the same read, from the disk", read_writers),
    "cold_delta": ("abl-hub delta, from the disk", delta),
    "load_edit_save": ("from_pretrained + edit + save_pretrained", load_edit_save),
}


def evict(folder: Path) -> None:
    """Let the page cache forget the files, so that they are read from the disk."""
    os.sync()
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_way(way: str, source: Path, out: Path) -> dict[str, float]:
    """In this process: seconds of the way, without imports, and the process's peak memory."""
    if way != "copy":
        import torch

        import abl_hub.edits.checkpoint
        import abl_hub.edits.delta  # noqa: F401

        if importlib.util.find_spec("bitsandbytes"):  # PEFT imports it with its first layer
            importlib.import_module("bitsandbytes")

        _edit(source)
        torch.randn(2, 2).mm(torch.randn(2, 2))
    if way.startswith("cold_"):
        evict(source)
    began, began_cpu = time.perf_counter(), sum(os.times()[:4])
    WAYS[way][1](source, out)
    seconds, cpu = time.perf_counter() - began, sum(os.times()[:4]) - began_cpu
    # ru_maxrss of a process counts what its parent held when it forked; VmHWM is its own.
    status = Path("/proc/self/status").read_text().split()
    peak = int(status[status.index("VmHWM:") + 1]) * 1024 / 1e6
    if way == "copy":
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return {"seconds": seconds, "cpu": cpu, "megabytes": peak}


def measure(source: Path, folder: Path, runs: int) -> dict[str, dict[str, float]]:
    """way → seconds (median and best), CPU seconds (median), MB (largest peak).

    The ways take turns, to share any drift of the machine.
    """
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way in WAYS:
            out = folder / "out"
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--way",
                    way,
                    "--source",
                    str(source),
                    "--out",
                    str(out),
                ],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(out)
            os.sync()
    return {
        way: {
            "median": statistics.median(run["seconds"] for run in results),
            "best": min(run["seconds"] for run in results),
            "cpu": statistics.median(run["cpu"] for run in results),
            "megabytes": max(run["megabytes"] for run in results),
        }
        for way, results in found.items()
    }


def bench(folder: Path, gigabytes: float, runs: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 2.5 * gigabytes * 1e9:
        sys.exit(f"{2.5 * gigabytes:.0f} GB are needed in {folder}, {free / 1e9:.0f} GB are free")
    with tempfile.TemporaryDirectory(dir=folder, prefix="abl-hub-benchmark-") as name:
        source = Path(name) / "source"
        subprocess.run(
            [sys.executable, __file__, "--make", str(source), "--gigabytes", str(gigabytes)],
            check=True,
        )
        size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        os.sync()
        results = measure(source, Path(name), runs)
    print(
        f"\n{size / 1e9:.2f} GB, {size // 2 / 1e9:.2f} B parameters in bfloat16, {SHARDS} shards, "
        f"{layer_count(gigabytes)} layers, {os.cpu_count()} CPU cores, "
        f"load of the last five minutes {os.getloadavg()[1]:.1f}, {runs} runs\n"
    )
    print("| way | seconds, median | ratio to cp | seconds, best | CPU seconds | peak memory |")
    print("|---|---:|---:|---:|---:|---:|")
    copied = results["copy"]["median"]
    for way, result in results.items():
        print(
            f"| {WAYS[way][0]} | {result['median']:.2f} | {result['median'] / copied:.2f} "
            f"| {result['best']:.2f} | {result['cpu']:.2f} | {result['megabytes']:.0f} MB |"
        )
    merged = results["merge"]
    reached = (
        merged["median"] <= _TARGET_RATIO * copied and merged["megabytes"] <= _TARGET_MEGABYTES
    )
    print(
        f"\nReach: merge ≤ {_TARGET_RATIO} × cp and ≤ {_TARGET_MEGABYTES} MB: "
        + ("reached" if reached else "NOT reached")
    )
    for place, name in (("from the page cache", ""), ("from the disk", "cold_")):
        ratio = results[f"{name}delta"]["median"] / results[f"{name}read_writers"]["median"]
        print(f"Delta, {place}: {ratio:.2f} × the time to read the bytes that it is made of")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--doubled", action="store_true", help="also twice the size, once")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make, options.gigabytes)
        return
    if options.way:
        print(json.dumps(run_way(options.way, options.source, options.out)))
        return
    bench(options.folder, options.gigabytes, options.runs)
    if options.doubled:
        bench(options.folder, 2 * options.gigabytes, 1)


if __name__ == "__main__":
    main()
