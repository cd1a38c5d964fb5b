"""A merge that is killed at any moment leaves the old state or the new one, never a half."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from abl_hub.edits.checkpoint import write_merged
from tests.edits import checkpoints as tiny

KILLS = 20
FAMILY = tiny.Family(
    model_type="llama",
    options=tiny.TIED.options | {"vocab_size": 300_000, "intermediate_size": 150_000},
    writers=tiny.TIED.writers,
)
"""Large enough that a merge takes long enough to be interrupted everywhere."""


def _merge(source: Path, out: Path, started: Connection) -> None:
    torch.set_num_threads(1)
    model = tiny.on_meta(source)
    edit = tiny.edit_of(FAMILY, model)
    started.send(None)
    write_merged(edit, source, out, model=model)
    started.send(None)


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
    }


def test_killed_at_random_points(tmp_path: Path) -> None:
    source = tiny.save(
        tiny.build(FAMILY), tmp_path / "source", dtype=torch.bfloat16, shard_size="10MB"
    )
    before = _digests(source)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.llama.modeling_llama"])

    def start(out: Path) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_merge, args=(source, out, sender))
        process.start()
        sender.close()
        receiver.recv()
        return process, receiver

    process, receiver = start(tmp_path / "whole")
    began = time.monotonic()
    receiver.recv()
    seconds = time.monotonic() - began
    process.join()
    whole = _digests(tmp_path / "whole")
    assert whole

    out = tmp_path / "out"
    chance = random.Random(0)
    halves = wholes = 0
    for _ in range(KILLS):
        process, _ = start(out)
        time.sleep(chance.uniform(0, 1.1 * seconds))
        process.kill()
        process.join()
        if out.exists():
            assert _digests(out) == whole
            out.rename(tmp_path / f"whole-{wholes}")
            wholes += 1
        halves += bool(list(tmp_path.glob(".out.partial-*")))
    assert halves > KILLS / 4, "the kills came too late to show anything"
    assert _digests(source) == before

    process, receiver = start(out)
    receiver.recv()
    process.join()
    assert _digests(out) == whole
    assert not list(tmp_path.glob(".out.partial-*")), "what a killed merge left is removed"
