"""What every method leaves on the demo model, by whole replies to held-out prompts.

    python benchmarks/methods.py [METHOD ...]

Failures are refusals and non-answers; of the other replies not all are answers, so that those are
counted too that are word for word what the model answered before it was tuned to refuse ("right").
Two edits a method: at one strength for all writers, and as the default `--strengths auto` takes it.
Beside them the second one's control: random subspaces of its rank, removed with its strengths from
the same writers. Of these the draw that leaves fewest failures is shown, and the largest p of exact
paired tests between them and the edit. CPU seconds are those of `extract` with the defaults.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import references, write_prompts
from abl_hub.demo.train import demo_model
from abl_hub.directions.contrast import SplitSizes, make_contrast
from abl_hub.directions.direction import Direction
from abl_hub.directions.methods import METHODS
from abl_hub.edits.edit import Edit, Gains
from abl_hub.edits.hooks import prepared
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.paired import mcnemar
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.trial import Baseline, Judged, baseline
from abl_hub.model.chat import load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.trace import trace_writers
from abl_hub.model.writers import Trace
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record
from abl_hub.stages.edit import recorded_edit
from abl_hub.stages.evaluate import random_edits
from abl_hub.stages.extract import extract, recorded_direction
from abl_hub.stages.runtime import Runtime

DRAWS = 5

_HEAD = (
    "| method | directions | layer, position | one strength: failures | right | damage | KL | "
    "`auto` | layer, position | failures | right | damage | KL | random: failures | p | CPU s |\n"
    "|---|---:|---|---:|---:|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """The model and the held-out prompts on which every edit is tried.

    Args:
        files: both prompt sets; those that are refused first.
        sizes: prompts a side; None takes the paper's.
        unedited: its replies to prompts that it refuses.
        answers: what it answered to all prompts before it was tuned to refuse.
    """

    model: Path
    files: tuple[Path, Path]
    sizes: SplitSizes | None
    trace: Trace
    gains: Gains
    against: Baseline
    unedited: Judged
    answers: Mapping[str, str]

    def subject(self, edit: Edit) -> Subject:
        base = self.against.subject
        return replace(base, active=prepared(edit, base.chat.model, self.gains))

    def judged(self, edit: Edit) -> Judged:
        return self.against.failures(self.subject(edit), like=self.unedited)

    def tried(self, direction: Direction, edit: Edit) -> Tried:
        subject, judged = self.subject(edit), self.judged(edit)
        pairs = zip(self.against.positive, judged.replies, strict=True)
        right = sum(reply.text.strip() == self.answers[prompt] for prompt, reply in pairs)
        return Tried(
            direction=direction,
            judged=judged,
            right=right / len(self.against.positive),
            damage=self.against.damage(subject).share,
            kl=self.against.kl(subject),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """What an edit leaves.

    Args:
        judged: replies to prompts that the model refuses.
        right: share of them that are word for word what was learnt before the refusing.
        damage: share of replies to other prompts that fail.
        kl: over those, nats a token.
    """

    direction: Direction
    judged: Judged
    right: float
    damage: float
    kl: float

    def cells(self) -> tuple[str, ...]:
        return (
            f"{self.direction.layer}, {self.direction.position}",
            f"{self.judged.share:.2f}",
            f"{self.right:.2f}",
            f"{self.damage:.2f}",
            f"{self.kl:.4f}",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """One method.

    Args:
        one: at one strength for all writers.
        auto: as `--strengths auto` takes it.
        fitted: whether the two are not the same.
        random: failures of the draw of random subspaces that leaves fewest.
        p: largest of the exact paired tests between them and `auto`.
        seconds: of the CPU.
    """

    one: Tried
    auto: Tried
    fitted: bool
    random: float
    p: float
    seconds: float


def bench(folder: Path, sizes: SplitSizes | None = None) -> Bench:
    """Demo model and prompts, split as `extract` does it."""
    asked = prompts()
    positive, negative = write_prompts(asked, folder)
    # Harmless stand-ins for categories: things that are spells, and things that are not.
    rows = (
        {"prompt": prompt, "category": "spell" if "spell" in prompt else "thing"}
        for prompt, _ in asked.positive
    )
    positive.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    contrast = make_contrast(
        [prompt for prompt, _ in asked.positive],
        [prompt for prompt, _ in asked.negative],
        sizes=sizes,
    )
    model = demo_model()
    chat = load_chat_model(model)
    trace = trace_writers(chat.model)
    against = baseline(
        Subject(chat=chat), contrast.positive.test, contrast.negative.test, protocol=Protocol()
    )
    return Bench(
        model=model,
        files=(positive, negative),
        sizes=sizes,
        trace=trace,
        gains=gains(chat.model, trace.writers),
        against=against,
        unedited=against.failures(against.subject),
        answers=references(asked),
    )


def extracted(
    bench: Bench, method: str, strengths: Literal["auto", "one"], out: Path
) -> tuple[Record, Direction, Edit]:
    out.mkdir()
    positive, negative = map(str, bench.files)
    recipe = Recipe(
        source=str(bench.model),
        positive=positive,
        negative=negative,
        sizes=bench.sizes,
        methods=(method,),
        strengths=strengths,
    )
    record = extract(recipe, out, Runtime())
    direction = recorded_direction(record, out)
    return record, direction, recorded_edit(record, direction, bench.trace)


def compared(bench: Bench, method: str, folder: Path) -> Compared:
    """Try both edits of `method`; outputs go into `folder`."""
    start = time.process_time()
    record, direction, edit = extracted(bench, method, "auto", folder / f"{method} auto")
    seconds = time.process_time() - start
    auto = one = bench.tried(direction, edit)
    fitted = record.strengths is not None and record.strengths.chosen is not None
    if fitted:
        _, *uniform = extracted(bench, method, "one", folder / f"{method} one")
        one = bench.tried(*uniform)
    controls = [bench.judged(control) for control in random_edits(edit, DRAWS, record.recipe.seed)]
    return Compared(
        one=one,
        auto=auto,
        fitted=fitted,
        random=min(control.share for control in controls),
        p=max(mcnemar(control.failed, auto.judged.failed).p for control in controls),
        seconds=seconds,
    )


def row(method: str, found: Compared) -> str:
    cells = (
        f"`{method}`",
        f"{found.auto.direction.rank}",
        *found.one.cells(),
        "fitted" if found.fitted else "one",
        *found.auto.cells(),
        f"{found.random:.2f}",
        f"{found.p:.0e}",
        f"{found.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tried = bench(Path(scratch))
        print(f"unedited: {tried.unedited.share:.2f} failures, {DRAWS} random draws\n\n{_HEAD}")
        for method in sys.argv[1:] or METHODS:
            print(row(method, compared(tried, method, Path(scratch))), flush=True)


if __name__ == "__main__":
    main()
