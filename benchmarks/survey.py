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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from abl_hub.edits.addition import added, addition
from abl_hub.edits.addition_delta import write_added_delta
from abl_hub.edits.addition_files import plan_added, write_added
from abl_hub.edits.carrying import carrying_layers
from abl_hub.edits.checkpoint import write_merged
from abl_hub.edits.delta import write_delta
from abl_hub.edits.edit import Edit, remove
from abl_hub.edits.hooks import applied
from abl_hub.edits.peft_skeleton import quiet_about_biases
from abl_hub.errors import AblHubError, NoMergedFormError
from abl_hub.model.check import residual, residual_limit
from abl_hub.model.gains import gains
from abl_hub.model.layers import decoder_layers
from abl_hub.model.meta import auto_class, meta_model
from abl_hub.model.stream import Sink, reading
from abl_hub.model.trace import trace_writers
from tests.families import CAUSAL, NOT_SMALL, WRAPPERS, build, tokens

AGREES = 1e-4
"""Largest share of the edit's effect on the logits by which two forms of it may differ."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table; what was not reached is empty."""

    family: str
    writers: str = ""
    before: str = ""
    after: str = ""
    merged: str = ""
    delta: str = ""
    addition: str = ""
    outcome: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Form:
    """What one form of the edit gave, or why there is none."""

    logits: torch.Tensor | None = None
    why_not: str = ""
    broken: bool = False
    """It was written, but does not load or run."""
    untied: bool = False
    left: float = 0.0
    """The component along the direction that stays in its stream."""


def survey(family: str, *, wrapper: bool) -> Line:
    """One family's row.

    Raises:
        UnbuildableError: transformers does not build or run it from our small configuration.
    """
    model, ids, before = _built(family, wrapper)
    try:
        trace_writers(meta_model(model.config))  # what the tool can see: no weights
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
        return replace(found, outcome="refused: by the numeric check (a constant writes)")
    scale = float((hooked - before).abs().max())
    merged = _merged(model, r, ids, wrapper)
    delta = _delta(model, edit, ids)
    rescaled = any(writer.rescaled for writer in trace.writers)
    outcome = "exact null, rescaled" if rescaled else "exact"
    return replace(
        found,
        after=f"{max(left, merged.left):.0e}",
        merged=_share(merged, hooked, scale),
        delta=_share(delta, hooked, scale),
        addition=_addition(model, ids),
        outcome=_disagreement(merged, delta, hooked, scale)
        or outcome + (", head untied" if merged.untied else ""),
    )


class UnbuildableError(Exception):
    """A family that transformers does not build or run from our small configuration."""


def _built(family: str, wrapper: bool) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The model, tokens and its logits."""
    try:
        model = build(family, wrapper=wrapper)
        ids = tokens(model)
        with torch.inference_mode():
            return model, ids, model(input_ids=ids, use_cache=False).logits
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnbuildableError(reason[:100]) from error


def _disagreement(merged: Form, delta: Form, hooked: torch.Tensor, scale: float) -> str:
    """Why the forms are not one edit; empty where they are. A delta may leave writers out."""
    if merged.logits is None:
        return f"not exact: no merged form ({merged.why_not})"
    if delta.broken:
        return f"not exact: the delta is written, but does not run ({delta.why_not})"
    if merged.left > residual_limit(torch.float32):
        return "not exact: the merged form fails the numeric check"
    for name, form in (("merged form", merged), ("delta", delta)):
        # Written so that a NaN disagrees.
        if form.logits is not None and not _apart(form.logits, hooked, scale) <= AGREES:
            return f"not exact: the {name} differs from the hooks"
    return ""


def _merged(model: Any, r: torch.Tensor, ids: torch.Tensor, wrapper: bool) -> Form:
    """The model as written, edited and read back; traced anew from its files, as the tool does."""
    auto: Any = AutoModelForImageTextToText if wrapper else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        try:
            model.save_pretrained(source)
            blueprint = meta_model(source)
            edit = remove(r, trace_writers(blueprint).writers)
            written = write_merged(edit, source, out, model=blueprint)
            loaded = auto.from_pretrained(out, attn_implementation="eager").eval()
        except AblHubError as error:
            return Form(why_not=error.why or error.what)
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            return Form(why_not=f"{type(error).__name__} in transformers")
        with torch.inference_mode():
            logits: torch.Tensor = loaded(input_ids=ids, use_cache=False).logits
        left = residual(loaded, ids, edit.directions)
        return Form(logits=logits, untied=written.untied, left=left)


def _delta(model: Any, edit: Edit, ids: torch.Tensor) -> Form:
    """A copy with the delta."""
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
        except AblHubError as error:
            return Form(why_not=error.why or error.what)
        try:
            wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(out))
            with torch.inference_mode():
                logits: torch.Tensor = wrapped(input_ids=ids, use_cache=False).logits
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            return Form(why_not=f"{type(error).__name__} in peft", broken=True)
        if written.left_out:
            return Form(why_not=f"leaves out {len(written.left_out)} writers")
        return Form(logits=logits)


def _addition(model: Any, ids: torch.Tensor) -> str:
    """A constant added behind the middle of the layers that can carry one, in all forms.

    What holds it, and the largest difference to the hook as a share of what the hook changes.
    """
    auto: Any = auto_class(model.config)
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        try:
            model.save_pretrained(source)
            blueprint = meta_model(source)
            trace = trace_writers(blueprint)
            layers = carrying_layers(blueprint, trace)
        except AblHubError as error:
            return f"none ({error.why or error.what})"
        layer = layers[len(layers) // 2]
        noise = torch.Generator().manual_seed(7)
        vector = torch.randn(trace.width, generator=noise, dtype=torch.float64)
        lengths: dict[int, float] = {}
        base = auto.from_pretrained(source, attn_implementation="eager").eval()
        with torch.inference_mode(), reading(decoder_layers(base)[1], _lengths(lengths)):
            before = base(input_ids=ids, use_cache=False).logits
        vector *= lengths[layer] / float(vector.norm())  # as long as the stream is there
        edit = addition(blueprint, trace, layer, vector)
        with torch.inference_mode(), added(edit, base):
            hooked = base(input_ids=ids, use_cache=False).logits
        scale = float((hooked - before).abs().max())
        loaded = []
        try:
            plan = plan_added(edit, source, model=blueprint)
            write_added(edit, source, out / "merged", model=blueprint, plan=plan)
            loaded.append(auto.from_pretrained(out / "merged", attn_implementation="eager").eval())
            place = edit.place
            held = f"{place.grown.field} switched on" if place.grown else "stored bias"
        except NoMergedFormError:
            held = "delta alone"
        write_added_delta(edit, out / "delta", model=blueprint, base="base")
        with quiet_about_biases():
            loaded.append(PeftModel.from_pretrained(base, str(out / "delta")))
        with torch.inference_mode():
            apart = max(
                _apart(one(input_ids=ids, use_cache=False).logits, hooked, scale) for one in loaded
            )
        return f"{apart:.0e} ({held})"


def _lengths(found: dict[int, float]) -> Sink:
    """Collects the stream's mean length behind each layer."""

    def sink(layer: int, hidden: torch.Tensor) -> None:
        found[layer] = float(hidden.norm(dim=-1).mean())

    return sink


def _apart(logits: torch.Tensor, hooked: torch.Tensor, scale: float) -> float:
    return float((logits - hooked).abs().max()) / scale


def _share(form: Form, hooked: torch.Tensor, scale: float) -> str:
    if form.logits is None:
        return " ".join(form.why_not.split())[:70]
    return f"{_apart(form.logits, hooked, scale):.0e}"


def render(
    causal: Sequence[Line], wrappers: Sequence[Line], unbuilt: Mapping[str, str], seconds: float
) -> str:
    """The page."""
    exact = [len(_having("exact", lines)) for lines in (causal, wrappers)]
    refused = _having("refused", [*causal, *wrappers])
    wrong = _having("not exact", [*causal, *wrappers])
    head = (
        "# Architectures\n\n"
        "Made by `make survey` (`benchmarks/survey.py`) with transformers "
        f"{version('transformers')}, peft {version('peft')}, torch {version('torch')}: tiny models "
        "with drawn weights, gains and biases, in float32.\n\n"
        f"{exact[0]} causal language models and {exact[1]} multimodal wrappers (language path) "
        f"are exact or exact null; {len(refused)} are refused, each with its reason; "
        f"{len(wrong)} are traced, but not exact in every form"
        + (f" ({', '.join(line.family for line in wrong)})" if wrong else "")
        + ".\n\n"
        "- before, after: max |r·h| / |h| over all states of the residual stream, unedited, "
        "and the larger of that under the runtime hooks and in the merged model.\n"
        "- merged, delta: largest logit difference to the runtime hooks, as a share of that "
        "between base and edited; or why that form does not hold the whole edit.\n"
        "- addition: what holds a constant that `--induce` adds behind a layer, and the larger of "
        "merged's and delta's difference to the hook, as a share of what the hook changes.\n"
        "- exact null, rescaled: a norm follows the writer; the direction is gone exactly, and "
        "the norm rescales what is left of each token's write.\n"
        f"- not exact: a form is missing, or differs from the hooks by more than {AGREES:.0e}. A "
        "delta that says which writers it leaves out is no difference.\n\n"
    )
    columns = ("family", "writers", "before", "after", "merged", "delta", "addition", "outcome")
    parts = [head]
    for title, lines in (("Causal language models", causal), ("Multimodal wrappers", wrappers)):
        parts.append(f"## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
        for line in lines:
            cells = (getattr(line, column).replace("|", "/") for column in columns)
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n")
    parts.append("## Not surveyed\n\nRegistered as causal language models, but:\n\n")
    for family, reason in sorted(unbuilt.items()):
        parts.append(f"- {family}: not built from our small configuration ({reason})\n")
    parts.append(f"- not small in our configuration: {', '.join(sorted(NOT_SMALL))}\n")
    print(f"{sum(exact)} exact, {len(refused)} refused, {len(wrong)} not exact, {seconds:.0f} s")
    return "".join(parts)


def _having(outcome: str, lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.outcome.startswith(outcome)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    began = time.monotonic()
    tables: list[list[Line]] = [[], []]
    unbuilt: dict[str, str] = {}
    for table, names, wrapper in ((tables[0], CAUSAL, False), (tables[1], WRAPPERS, True)):
        for family in names:
            if arguments.families and family not in arguments.families:
                continue
            try:
                line = survey(family, wrapper=wrapper)
            except UnbuildableError as error:
                unbuilt[family] = str(error)
                print(f"{family}: not built ({error})", flush=True)
                continue
            table.append(line)
            print(*line.__dict__.values(), sep="  ", flush=True)
    page = render(tables[0], tables[1], unbuilt, time.monotonic() - began)
    if arguments.out is not None:
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
