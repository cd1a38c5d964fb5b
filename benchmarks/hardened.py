"""What tells a hardened model from a failed run, on models whose truth is known.

python benchmarks/hardened.py
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from abl_hub.demo.corpus import DemoPrompts, prompts
from abl_hub.demo.harden import hardened_model
from abl_hub.demo.run import write_prompts
from abl_hub.demo.train import demo_model
from abl_hub.directions.contrast import SplitSizes
from abl_hub.report.recipe import DEFAULT_METHODS, Recipe
from abl_hub.stages.analyse import analyse
from abl_hub.stages.extract import extract
from abl_hub.stages.runtime import Runtime

_SIZES = SplitSizes(train=64, validation=32, test=24)


def main() -> None:
    print(
        "| model | run | first-token log-odds, base | without the edit | still refused | "
        "non-answers | damage | finding | directions |\n"
        "|---|---|---:|---:|---:|---:|---:|---|---:|"
    )
    demo, hardened = demo_model(), hardened_model()
    asked = prompts()
    few = SplitSizes(train=3, validation=32, test=24)
    _row("demo", "default", demo, asked)
    _row("demo", "`--method harm --strengths one`", demo, asked, ("harm",), strengths="one")
    _row("demo", "mixed-up prompts, `--strengths one`", demo, _mixed(asked), strengths="one")
    _row("hardened", "default", hardened, asked)
    _row("hardened", "`--strengths one`", hardened, asked, strengths="one")
    _row("hardened", "3 training prompts", hardened, asked, sizes=few, strengths="one")
    for method in ("successive", "svd", "som", "cone"):
        run = f"`--method {method} --rank 3 --strengths one`"
        _row("hardened", run, hardened, asked, (method,), strengths="one")


def _mixed(asked: DemoPrompts) -> DemoPrompts:
    both = [*asked.positive, *asked.negative]
    random.Random(0).shuffle(both)
    return DemoPrompts(positive=tuple(both[::2]), negative=tuple(both[1::2]))


def _row(
    model: str,
    run: str,
    source: Path,
    asked: DemoPrompts,
    methods: tuple[str, ...] = DEFAULT_METHODS,
    *,
    strengths: str = "auto",
    sizes: SplitSizes = _SIZES,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        positive, negative = write_prompts(asked, folder)
        recipe = Recipe(
            source=str(source),
            positive=str(positive),
            negative=str(negative),
            methods=methods,
            rank=3,
            sizes=sizes,
            strengths=strengths,  # type: ignore[arg-type]
        )
        extract(recipe, folder, Runtime())
        analysis = analyse(folder, Runtime()).analysis
    if analysis is None or analysis.told is None:
        raise SystemExit("nothing was told")
    edit = analysis.removals[1]
    print(
        f"| {model} | {run} | {analysis.residual[0]:.1f} | {analysis.residual[1]:.1f} | "
        f"{edit.shown:.2f} | {edit.non_answers:.2f} | {edit.damage:.2f} | "
        f"{analysis.told.finding} | {analysis.told.directions or ''} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
