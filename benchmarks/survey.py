"""Every architecture that transformers can build small: traced, edited in three forms, compared.

    python benchmarks/survey.py [--out docs/architectures.md] [FAMILY ...]

Writes a table: writers found, the component along the direction before and after, the largest
logit difference between hooks and merged weights and between hooks and delta as a share of that
between base and edited, the class of exactness, or the reason of the refusal.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.delta import write_delta
from abl_hub.edits.edit import Edit, remove
from abl_hub.edits.hooks import applied
from abl_hub.errors import AblHubError
from abl_hub.model.check import residual, residual_limit
from abl_hub.model.gains import gains
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from tests.families import CAUSAL, WRAPPERS, build, tokens


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table; what was not reached is empty."""

    family: str
    writers: str = ""
    before: str = ""
    after: str = ""
    merged: str = ""
    delta: str = ""
    outcome: str = ""


def survey(family: str, *, wrapper: bool) -> Line | None:
    """One family's row; None where transformers cannot build it small as we ask."""
    try:
        model = build(family, wrapper=wrapper)
        ids = tokens(model)
        with torch.inference_mode():
            before = model(input_ids=ids, use_cache=False).logits
    except Exception as error:  # noqa: BLE001 - 170 builders fail in as many ways
        print(f"{family}: not built ({type(error).__name__})", flush=True)
        return None
    try:
        trace = trace_writers(model)
    except AblHubError as error:
        return Line(family=family, outcome=f"refused: {error.why or error.what}")
    r = torch.randn(trace.width, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    edit = remove(r, trace.writers)
    present = residual(model, ids, edit.directions)
    with torch.inference_mode(), applied(edit, model, gains(model, trace.writers)):
        left = residual(model, ids, edit.directions)
        hooked = model(input_ids=ids, use_cache=False).logits
    found = Line(
        family=family,
        writers=str(len(trace.writers)),
        before=f"{present:.2f}",
        after=f"{left:.0e}",
    )
    if left > residual_limit(torch.float32):
        return Line(
            **{**found.__dict__, "outcome": "refused: by the numeric check (a constant writes)"}
        )
    scale = float((hooked - before).abs().max())
    merged, untied = _merged(model, edit, ids, wrapper)
    delta = _delta(model, edit, ids)
    rescaled = any(writer.rescaled for writer in trace.writers)
    outcome = "exact null, rescaled" if rescaled else "exact"
    return Line(
        **{
            **found.__dict__,
            "merged": _share(merged, hooked, scale),
            "delta": _share(delta, hooked, scale),
            "outcome": outcome + (", head untied" if untied else ""),
        }
    )


def _merged(
    model: Any, edit: Edit, ids: torch.Tensor, wrapper: bool
) -> tuple[torch.Tensor | str, bool]:
    """Logits of the model as written, edited and read back, or why it was not."""
    auto: Any = AutoModelForImageTextToText if wrapper else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        try:
            model.save_pretrained(source)
            blueprint = meta_model(source)
            written = write_merged(edit, source, out, model=blueprint)
            loaded = auto.from_pretrained(out, attn_implementation="eager").eval()
        except AblHubError as error:
            return f"{error.why or error.what}", False
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            return f"{type(error).__name__} in transformers", False
        with torch.inference_mode():
            logits: torch.Tensor = loaded(input_ids=ids, use_cache=False).logits
        return logits, written.untied


def _delta(model: Any, edit: Edit, ids: torch.Tensor) -> torch.Tensor | str:
    """Logits of a copy with the delta, or why there is none that holds all of the edit."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "delta"
        try:
            written = write_delta(
                edit,
                out,
                model=model,
                read=lambda name: model.get_parameter(name).detach(),
                gains=gains(model, edit.writers),
                base="base",
            )
            wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(out))
        except AblHubError as error:
            return f"{error.why or error.what}"
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            return f"{type(error).__name__} in peft"
        if written.left_out:
            return f"leaves out {len(written.left_out)} writers"
        with torch.inference_mode():
            logits: torch.Tensor = wrapped(input_ids=ids, use_cache=False).logits
        return logits


def _share(logits: torch.Tensor | str, hooked: torch.Tensor, scale: float) -> str:
    if isinstance(logits, str):
        return " ".join(logits.split())[:70].replace("|", "/")
    return f"{float((logits - hooked).abs().max()) / scale:.0e}"


def render(causal: list[Line], wrappers: list[Line], unbuilt: list[str], seconds: float) -> str:
    """The page."""
    done = [line for line in (*causal, *wrappers) if not line.outcome.startswith("refused")]
    refused = len(causal) + len(wrappers) - len(done)
    head = (
        "# Architectures\n\n"
        "Made by `make survey` (`benchmarks/survey.py`) with transformers "
        f"{version('transformers')}, peft {version('peft')}, torch {version('torch')}: tiny models "
        "with drawn weights, gains and biases, in float32.\n\n"
        f"{sum(line in done for line in causal)} causal language models and "
        f"{sum(line in done for line in wrappers)} multimodal wrappers (language path) are exact "
        f"or exact null; {refused} are refused, each with its reason.\n\n"
        "- before, after: max |r·h| / |h| over all states of the residual stream, unedited "
        "and under the runtime hooks.\n"
        "- merged, delta: largest logit difference to the runtime hooks, as a share of that "
        "between base and edited; or why that form does not hold the whole edit.\n"
        "- exact null, rescaled: a norm follows the writer; the direction is gone exactly, and "
        "what is left is runtime ablation up to a scale for each token.\n\n"
    )
    columns = ("family", "writers", "before", "after", "merged", "delta", "outcome")
    parts = [head]
    for title, lines in (("Causal language models", causal), ("Multimodal wrappers", wrappers)):
        parts.append(f"## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
        for line in lines:
            cells = (getattr(line, column).replace("|", "/") for column in columns)
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n")
    if unbuilt:
        parts.append(
            "Not surveyed, because transformers does not build them from our small configurations: "
            + f"{', '.join(unbuilt)}.\n"
        )
    print(f"{len(done)} exact or exact null, {refused} refused, in {seconds:.0f} s")
    return "".join(parts).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    began = time.monotonic()
    tables: list[list[Line]] = [[], []]
    unbuilt: list[str] = []
    for table, names, wrapper in ((tables[0], CAUSAL, False), (tables[1], WRAPPERS, True)):
        for family in names:
            if arguments.families and family not in arguments.families:
                continue
            line = survey(family, wrapper=wrapper)
            if line is None:
                unbuilt.append(family)
            else:
                table.append(line)
                print(*line.__dict__.values(), sep="  ", flush=True)
    page = render(tables[0], tables[1], unbuilt, time.monotonic() - began)
    if arguments.out is not None:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
