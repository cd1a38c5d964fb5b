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

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel

from abl_hub.demo.corpus import DemoPrompts, prompts
from abl_hub.demo.train import demo_model
from abl_hub.hub.local import LocalHub
from abl_hub.hub.publish import Published, publish
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.generate import next_token_logits
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record
from abl_hub.stages.convert import convert
from abl_hub.stages.push import push
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.target import Target

BASE = "demo/wandmaker"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found and published.

    Args:
        record: of the conversion.
        published: merged, delta and Space on the local Hub.
        merged_apart: largest logit difference between the merged model as downloaded and on disk.
        delta_apart: the same for base plus delta, against the merged model.
        requests: HTTP requests that the local Hub answered.
        base: folder of the demo model.
    """

    record: Record
    published: tuple[Published, ...]
    merged_apart: float
    delta_apart: float
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
            published = push(out, local, Target())
            questions = [prompt for prompt, _ in (*asked.positive[:8], *asked.negative[:8])]
            merged_apart, delta_apart = _compare(out, model, published, questions, local)
            return Demo(
                record=record,
                published=published,
                merged_apart=merged_apart,
                delta_apart=delta_apart,
                requests=len(hub.requests),
                base=model,
            )


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


def _compare(
    out: Path,
    base: Path,
    published: tuple[Published, ...],
    questions: list[str],
    runtime: Runtime,
) -> tuple[float, float]:
    """Download what was published and compare its logits with what is on disk."""

    def download(item: Published) -> Path:
        return Path(
            snapshot_download(
                item.repo,
                revision=item.commit,
                cache_dir=runtime.cache_dir,
                token=runtime.token,
                endpoint=runtime.endpoint,
            )
        )

    merged, delta = (item for item in published if item.kind == "model")
    kept = next_token_logits(load_chat_model(out / "merged"), questions)
    loaded = next_token_logits(load_chat_model(download(merged)), questions)
    chat = load_chat_model(base)
    wrapped = PeftModel.from_pretrained(chat.model, str(download(delta)))
    adapted = next_token_logits(ChatModel(model=wrapped, tokenizer=chat.tokenizer), questions)
    return _apart(loaded, kept), _apart(adapted, kept)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())
