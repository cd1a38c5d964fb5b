"""What a run would read, write and push, without doing any of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from abl_hub.edits.carrying import carrying_layers, find_place
from abl_hub.edits.plan import plan_model
from abl_hub.edits.shards import CONFIG
from abl_hub.errors import NoMergedFormError
from abl_hub.hub.account import namespace
from abl_hub.hub.prompt_spec import is_local
from abl_hub.hub.prompts import load_prompts
from abl_hub.hub.source import plan_source
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from abl_hub.model.writers import Trace, Writer
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record, load_record
from abl_hub.stages.early import check_recipe, planned_repositories, refuse_quantised
from abl_hub.stages.edit import example_removal
from abl_hub.stages.forms import MERGED
from abl_hub.stages.inputs import base_place, fetch_prompts
from abl_hub.stages.runtime import Runtime
from abl_hub.stages.target import (
    Base,
    Target,
    check_allowed,
    described,
    gate_prompt,
    published_parts,
    refuse_lost_addition,
    repositories,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One line a thing: (what, how much or where)."""

    lines: tuple[tuple[str, str], ...]


def plan(
    recipe: Recipe,
    out: Path,
    runtime: Runtime,
    *,
    target: Target | None = None,
    stream: bool = False,
) -> Plan:
    """What `convert` would do. Downloads at most the configuration and the card; of the prompts
    only files are read.

    Raises:
        AblHubError: one of its kinds, as `convert` would.
    """
    check_recipe(recipe, runtime)
    bare = _bare_configuration(recipe.source)
    if bare is not None:
        return _plan_of_configuration(recipe, bare, out)
    source = plan_source(
        recipe.source,
        revision=recipe.revision,
        token=runtime.token,
        endpoint=runtime.endpoint,
        cache_dir=runtime.cache_dir,
        trust_remote_code=recipe.trust_remote_code,
    )
    config = refuse_quantised(source.config_folder)
    blueprint = meta_model(source.config_folder, trust_remote_code=recipe.trust_remote_code)
    trace = trace_writers(blueprint)
    largest = max(f.size for f in source.files if f.path.endswith(".safetensors"))
    place = f"to the Hub, {size(largest)} at a time" if stream else f"in {out}/merged"
    lines = [
        ("source", f"{source.name} at {source.commit or 'this folder'}"),
        ("to download", f"{size(source.download_bytes)} in {source.download_files} files"),
        *_prompt_lines(recipe, runtime),
        (
            "architecture",
            f"{trace.architecture}, {trace.layer_count} layers, width {trace.width}",
        ),
        *(
            _addition_lines(blueprint, trace, place, out)
            if recipe.induce
            else _removal_lines(blueprint, trace, recipe, place, out, config, source.weight_bytes)
        ),
    ]
    if recipe.tasks is not None:
        lines.append(("tasks", f"{', '.join(recipe.tasks.names)}, through lm-eval"))
    if target is not None:
        base = Base.of_plan(source, recipe)
        repos = planned_repositories(source, recipe, target, _owner(target, runtime))
        lines += [
            (f"push {part}", f"{repos[part]} ({described(part, target)})")
            for part in published_parts(base, target)
        ]
        lines += _around(base, target)
    return Plan(lines=tuple(lines))


def _prompt_lines(recipe: Recipe, runtime: Runtime) -> list[tuple[str, str]]:
    """How files of prompts would be split; a data set of the Hub is not asked for."""
    here = [spec for spec in (recipe.positive, recipe.negative) if is_local(spec)]
    if len(here) < 2:
        for spec in here:
            load_prompts(spec)
        return []
    side = fetch_prompts(recipe, runtime).contrast.positive
    counts = f"{len(side.train)} train, {len(side.validation)} validation, {len(side.test)} test"
    return [("prompts a side", counts)]


def _removal_lines(
    blueprint: PreTrainedModel,
    trace: Trace,
    recipe: Recipe,
    place: str,
    out: Path,
    config: Mapping[str, object],
    weight_bytes: int | None = None,
) -> list[tuple[str, str]]:
    """What a removal reads and writes, of the writers that the recipe names."""
    edit = example_removal(recipe, trace)
    edited = [w for w, strength in zip(edit.writers, edit.strengths, strict=True) if strength]
    lines = [("writers", f"{len(edited)} parameters")]
    if len(edited) < len(trace.writers):
        lines = [("writers", f"{len(edited)} of {len(trace.writers)} parameters")]
    try:
        cost = plan_model(
            blueprint,
            edited,
            config=config,
            untie=recipe.untie,
            cancelling=recipe.rounding == "cancelling",
        )
    except NoMergedFormError as error:
        lines.append(("merged", f"none: {error.why}"))
    else:
        # Files also hold what is no parameter, as multi-token prediction.
        written = cost.bytes_written if not weight_bytes else weight_bytes + cost.bytes_added
        lines += [
            ("bytes to read", f"{size(cost.bytes_read)} of writers"),
            ("merged", f"{size(written)} {place}"),
            ("memory to write", f"about {size(cost.memory_bytes)}"),
        ]
    return [*lines, ("delta", f"about {size(_delta_bytes(edited, trace.width))} in {out}/delta")]


def _addition_lines(
    blueprint: PreTrainedModel, trace: Trace, place: str, out: Path
) -> list[tuple[str, str]]:
    """What `--induce` would write; which layer it will be is not known yet."""
    layers = carrying_layers(blueprint, trace)
    example = find_place(blueprint, trace, layers[len(layers) // 2])
    module = example.module.rpartition(".")[2]
    if example.has_bias:
        merged = f"one bias of a {module} changes, {place}"
    elif example.grown is not None:
        merged = f"a copy with {example.grown.field} switched on, {place}"
    else:
        merged = f"none: {module} has no bias, and no switch that gives it one"
    return [
        ("added", f"a constant; {len(layers)} of {trace.layer_count} layers could carry it"),
        ("merged", merged),
        ("delta", f"a bias of {trace.width} numbers in {out}/delta"),
    ]


def _owner(target: Target, runtime: Runtime) -> str:
    return target.namespace or namespace(token=runtime.token, endpoint=runtime.endpoint)


def _around(base: Base, target: Target) -> list[tuple[str, str]]:
    """What readers are asked at the gate, why there is no Space, and the collection."""
    lines: list[tuple[str, str]] = []
    if target.gated is not None:
        lines.append(("gated", f"{target.gated}: {gate_prompt(base, target)}"))
    lines += [(f"no {part}", why) for part, why in base.missing.items() if part in target.parts]
    if target.collection is not None:
        lines.append(("collection", target.collection))
    return lines


def _bare_configuration(source: str) -> Path | None:
    """The folder `source`, if it holds a configuration and no weights: enough to plan with."""
    folder = Path(source).expanduser()
    if (folder / CONFIG).is_file() and not any(folder.glob("*.safetensors")):
        return folder
    return None


def _plan_of_configuration(recipe: Recipe, folder: Path, out: Path) -> Plan:
    """What converting a model of this configuration would take, its weights unseen."""
    config = refuse_quantised(folder)
    blueprint = meta_model(folder, trust_remote_code=recipe.trust_remote_code)
    trace = trace_writers(blueprint)
    parameters = sum(parameter.numel() for parameter in blueprint.parameters())
    place = f"in {out}/merged"
    return Plan(
        lines=(
            ("source", f"{folder.name}: a configuration without weights, {parameters / 1e9:.1f} B"),
            (
                "architecture",
                f"{trace.architecture}, {trace.layer_count} layers, width {trace.width}",
            ),
            *(
                _addition_lines(blueprint, trace, place, out)
                if recipe.induce
                else _removal_lines(blueprint, trace, recipe, place, out, config)
            ),
        )
    )


def _delta_bytes(writers: Sequence[Writer], width: int) -> int:
    """Rank one in float32: what a writer reads and what it loses, expert by expert."""
    return 4 * sum(width + math.prod(w.shape) // w.shape[w.axis] for w in writers)


def plan_push(out: Path, runtime: Runtime, target: Target, *, stream: bool = False) -> Plan:
    """What `push` would do. Streaming, it asks the Hub for the base's list of files.

    Raises:
        SourceError, HubError: as `push` would.
    """
    record = load_record(out)
    check_allowed(record, target)
    base = Base.of_record(record)
    repos = repositories(base, target, _owner(target, runtime))
    parts = published_parts(base, target)
    refuse_lost_addition(record, parts, out)
    lines = [(f"no {part}", why) for part, why in base.missing.items() if part in target.parts]
    for part in parts:
        where = f"{repos[part]} ({described(part, target)})"
        folder = out / part
        if part == MERGED and not folder.is_dir():
            lines.append((part, f"streamed to {where}"))
            continue
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        lines.append((part, f"{size(total)} to {where}"))
    if stream and MERGED in parts and not (out / MERGED).is_dir():
        lines.append(("base", _passing_base(record, runtime)))
    return Plan(lines=(*lines, *_around(base, target)))


def _passing_base(record: Record, runtime: Runtime) -> str:
    """How the base gets here, shard by shard, and what lies on this disk at most."""
    source = plan_source(
        base_place(record),
        revision=record.source.commit or record.recipe.revision,
        token=runtime.token,
        endpoint=runtime.endpoint,
        cache_dir=runtime.cache_dir,
        trust_remote_code=runtime.trust_remote_code,
    )
    absent = [file.size for file in source.absent if file.path.endswith(".safetensors")]
    largest = max(file.size for file in source.files if file.path.endswith(".safetensors"))
    if not absent:
        return f"is here; {size(largest)} of weights beside it at most"
    return (
        f"{size(sum(absent))} in {len(absent)} shards fetched one by one; "
        f"{size(max(absent) + largest)} of weights here at most"
    )


def size(count_bytes: int) -> str:
    """A number of bytes for people, in powers of 1000 as disks and the Hub count."""
    value, unit = float(count_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
