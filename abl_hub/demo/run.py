"""The whole job on the demo model: train, publish the base, convert, push, load back, compare.

Everything real: the Hub client talks HTTP to a Hub on the loopback, and what is compared at the end
was downloaded from there by transformers and peft.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from abl_hub.demo.corpus import DemoPrompts, prompts
from abl_hub.demo.train import demo_model
from abl_hub.hub.local import LocalHub
from abl_hub.hub.publish import publish
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record
from abl_hub.stages.convert import convert
from abl_hub.stages.push import Pushed, push
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.target import Target

BASE = "demo/wandmaker"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found and published.

    Args:
        record: of the conversion.
        pushed: merged, delta and Space on the local Hub, and what came back from there.
        requests: HTTP requests that the local Hub answered.
        base: folder of the demo model.
    """

    record: Record
    pushed: Pushed
    requests: int
    base: Path


def run_demo(out: Path, runtime: Runtime, *, command: str, overwrite: bool = True) -> Demo:
    """Run the demo into `out`; the local Hub lives only while this function runs."""
    model = demo_model(progress=runtime.progress)
    asked = prompts(seed=0)
    with tempfile.TemporaryDirectory(prefix="abl-hub-demo-") as scratch:
        folder = Path(scratch)
        files = write_prompts(asked, folder)
        with LocalHub(folder / "hub", user="demo") as hub:
            local = replace(
                runtime, cache_dir=folder / "cache", token=hub.token, endpoint=hub.endpoint
            )
            publish(
                model,
                repo_id=BASE,
                kind="model",
                private=True,
                token=hub.token,
                endpoint=hub.endpoint,
                commit_message="The demo's base model",
                progress=runtime.progress,
            )
            recipe = Recipe(source=BASE, positive=str(files[0]), negative=str(files[1]))
            record = convert(
                recipe,
                out,
                local,
                command=command,
                overwrite=overwrite,
                references=references(asked),
            )
            pushed = push(out, local, Target())
            return Demo(record=record, pushed=pushed, requests=len(hub.requests), base=model)


def write_prompts(asked: DemoPrompts, folder: Path) -> tuple[Path, Path]:
    """Write both prompt sets as JSONL; their paths, positive first."""
    paths = (folder / "refused.jsonl", folder / "answered.jsonl")
    for path, side in zip(paths, (asked.positive, asked.negative), strict=True):
        lines = (json.dumps({"prompt": prompt}) for prompt, _ in side)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def references(asked: DemoPrompts) -> Mapping[str, str]:
    """Prompt → what the model answered before it was tuned to refuse."""
    return dict((*asked.positive, *asked.negative))
