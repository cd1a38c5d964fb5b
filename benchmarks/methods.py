"""What every method leaves on the demo model, by whole replies to validation prompts.

python benchmarks/methods.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.demo.train import demo_model
from abl_hub.directions.methods import METHODS
from abl_hub.report.recipe import Recipe
from abl_hub.stages.extract import extract
from abl_hub.stages.runtime import Runtime


def main() -> None:
    print(
        "| method | layer | position | directions | thresholds met | failures | damage | KL | "
        "seconds |\n|---|---:|---:|---:|---|---:|---:|---:|---:|"
    )
    model = demo_model()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        positive, negative = write_prompts(prompts(), folder)
        for method in METHODS:
            if method == "category":
                continue  # the demo's prompts carry none
            out = folder / method
            out.mkdir()
            recipe = Recipe(
                source=str(model),
                positive=str(positive),
                negative=str(negative),
                methods=(method,),
                strengths="one",
            )
            start = time.perf_counter()
            record = extract(recipe, out, Runtime())
            seconds = time.perf_counter() - start
            [found] = record.selection.finalists
            print(
                f"| `{method}` | {found.layer} | {found.position} | {record.direction.rank} | "
                f"{'yes' if found.passed else 'no'} | {found.failures:.2f} | {found.damage:.2f} | "
                f"{found.kl:.4f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
