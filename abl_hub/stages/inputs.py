"""What every stage starts from: source and contrast, resolved again and held to the record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from abl_hub.directions.contrast import Contrast, Split, make_contrast
from abl_hub.errors import ContrastError, SourceError
from abl_hub.hub.prompt_spec import with_absolute_files
from abl_hub.hub.prompts import PromptSet, load_prompts
from abl_hub.hub.source import Source, local_folder, resolve_source
from abl_hub.model.chat import ChatModel, load_chat_model
from abl_hub.model.meta import meta_model
from abl_hub.model.trace import trace_writers
from abl_hub.model.writers import Trace
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import PromptsRecord, Record, SourceRecord
from abl_hub.stages.runtime import Runtime, dtype_named

_FEW = 8


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A contrast and the two sets it was drawn from."""

    contrast: Contrast
    positive: PromptSet
    negative: PromptSet


def fetch_source(
    recipe: Recipe, runtime: Runtime, *, commit: str | None = None, weights: bool = True
) -> Source:
    """Resolve the recipe's source, at `commit` if it is known already.

    Args:
        weights: False fetches no weights; those that were fetched before are used.
    """
    return resolve_source(
        recipe.source,
        revision=commit or recipe.revision,
        token=runtime.token,
        endpoint=runtime.endpoint,
        cache_dir=runtime.cache_dir,
        trust_remote_code=runtime.trust_remote_code,
        weights=weights,
        progress=runtime.progress,
    )


def fetch_weights(source: Source, recipe: Recipe, runtime: Runtime) -> Source:
    """A source that was fetched without its weights, with them."""
    return fetch_source(recipe, runtime, commit=source.commit) if source.absent else source


def fetch_prompts(
    recipe: Recipe, runtime: Runtime, *, positive: str | None = None, negative: str | None = None
) -> Prompts:
    """Load both prompt sets and draw the splits; the specs of a record replace the recipe's."""

    def load(spec: str) -> PromptSet:
        return load_prompts(
            spec, token=runtime.token, endpoint=runtime.endpoint, cache_dir=runtime.cache_dir
        )

    shown, other = load(positive or recipe.positive), load(negative or recipe.negative)
    contrast = make_contrast(
        shown.prompts,
        other.prompts,
        sizes=recipe.sizes,
        seed=recipe.seed,
        behaviour=recipe.behaviour,
        parts=shown.part_of | other.part_of,
    )
    return Prompts(contrast=contrast, positive=shown, negative=other)


def recorded_source(record: Record, runtime: Runtime, *, weights: bool = True) -> Source:
    """The source of `record`, at its commit; `weights` as for `fetch_source`.

    Raises:
        SourceError: its weights are no longer those of the record, or its code is not trusted.
    """
    refuse_code(record, runtime)
    base_place(record)
    source = fetch_source(record.recipe, runtime, commit=record.source.commit, weights=weights)
    changed = _changed_source(source, record)
    if changed is not None:
        raise SourceError(
            f"{changed} since the direction was extracted",
            next_step="Run `abl-hub extract` again",
        )
    return source


def base_place(record: Record) -> str:
    """Where the base lies: its Hub id, or its folder on this machine.

    Raises:
        SourceError: it was a folder, and is not there. A Hub id of that name is another model.
    """
    source = record.source
    if source.repo is None and not Path(source.name).expanduser().is_dir():
        raise SourceError(
            f"There is no folder {source.name}",
            why="the base was there",
            next_step="Put it back, or tell `chat` and `space` where it lies: --base",
        )
    return source.repo or source.name


def note_another_base(base: str, record: Record, runtime: Runtime) -> None:
    """Say so where `base`, a folder, holds other weights than the record's base."""
    folder = local_folder(base, None)
    if folder is None:
        return
    source = resolve_source(base, progress=runtime.progress)
    if weights_digest(source) != record.source.digest:
        runtime.progress.note(
            f"The weights in {base} are not those of the record's base: what the edited model says "
            "on them was not measured"
        )


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of folders and files: it means the same in every folder."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().resolve())

    def test_set(asked: str) -> str:
        kind, colon, spec = asked.partition(":")
        return f"{kind}{colon}{with_absolute_files(spec)}" if spec else asked

    tasks = recipe.tasks
    if tasks is not None and tasks.path is not None:
        tasks = replace(tasks, path=absolute(tasks.path))
    here = local_folder(recipe.source, recipe.revision) is not None
    return replace(
        recipe,
        source=absolute(recipe.source) if here else recipe.source,
        positive=with_absolute_files(recipe.positive),
        negative=with_absolute_files(recipe.negative),
        test_sets=tuple(map(test_set, recipe.test_sets)),
        tasks=tasks,
    )


def recorded_prompts(record: Record, runtime: Runtime) -> Prompts:
    """The prompts of `record`.

    Raises:
        ContrastError: they are no longer those of the record.
    """
    prompts = _prompts_of(record, runtime)
    changed = _changed_prompts(prompts, record)
    if changed is not None:
        raise ContrastError(
            f"{changed} since the direction was extracted",
            next_step="Run `abl-hub extract` again",
        )
    return prompts


def changed_since(record: Record, runtime: Runtime) -> str | None:
    """What of model and prompts is no longer that of `record`, as a clause; None: nothing."""
    recipe, commit = record.recipe, record.source.commit
    base_place(record)
    source = fetch_source(recipe, runtime, commit=commit, weights=False)
    changed = _changed_source(source, record)
    return changed or _changed_prompts(_prompts_of(record, runtime), record)


def _changed_source(source: Source, record: Record) -> str | None:
    if weights_digest(source) == record.source.digest:
        return None
    return f"{record.source.name} has changed"


def _prompts_of(record: Record, runtime: Runtime) -> Prompts:
    return fetch_prompts(
        record.recipe,
        runtime,
        positive=_pinned(record.positive),
        negative=_pinned(record.negative),
    )


def _changed_prompts(prompts: Prompts, record: Record) -> str | None:
    for name, side, held in (
        ("positive", prompts.contrast.positive, record.positive),
        ("negative", prompts.contrast.negative, record.negative),
    ):
        if side.digests() != dict(held.splits):
            return f"The {name} prompts have changed"
    return None


def few_prompts(prompts: Prompts) -> tuple[str, ...]:
    """The validation prompts that forms and copies of a model are compared on, both sides."""
    contrast = prompts.contrast
    half = _FEW // 2
    return (*contrast.positive.validation[:half], *contrast.negative.validation[:half])


def load_recorded(folder: Path, record: Record, runtime: Runtime) -> ChatModel:
    """Load a model folder as it is measured in `record`.

    Raises:
        SourceError, UnsupportedModelError: as `load_chat_model`; or its code is not trusted.
    """
    refuse_code(record, runtime)
    recipe = record.recipe
    return load_chat_model(
        folder,
        dtype=dtype_named(recipe.dtype),
        device=runtime.device,
        load_in=recipe.load_in,
        system=recipe.system,
        opening=record.opening,
        trust_remote_code=runtime.trust_remote_code,
    )


def recorded_trace(source: Source, runtime: Runtime) -> Trace:
    """The writers of the source's architecture, whatever the loaded model keeps them in."""
    return trace_writers(meta_model(source.folder, trust_remote_code=runtime.trust_remote_code))


def refuse_code(record: Record, runtime: Runtime) -> None:
    """Refuse a model that needs its repository's Python, where only the record allows that.

    Raises:
        SourceError: so it is.
    """
    if record.recipe.trust_remote_code and not runtime.trust_remote_code:
        raise SourceError(
            f"{record.source.name} needs Python code of its own repository",
            why="a record's word for it is not enough to run it",
            next_step="Read that code, and give --trust-remote-code if you trust it",
        )


def _pinned(prompts: PromptsRecord) -> str | None:
    """A Hub data set at the commit that was used; None for a file, which has none."""
    if prompts.spec is not None or prompts.revision is None:
        return prompts.spec
    split = f":{prompts.split}" if prompts.split else ""
    column = f"#{prompts.column}" if prompts.column else ""
    return f"{prompts.name}@{prompts.revision}{split}{column}"


def describe_source(source: Source) -> SourceRecord:
    """The source as the record holds it."""
    return SourceRecord(
        name=source.name,
        repo=source.repo,
        revision=source.revision,
        commit=source.commit,
        digest=weights_digest(source),
        licence=source.licence.id,
        licence_name=source.licence.name,
        licence_link=source.licence.link,
        licence_files=tuple(source.licence.files),
    )


def describe_prompts(prompts: PromptSet, split: Split) -> PromptsRecord:
    """One prompt set as the record holds it: names and hashes."""
    return PromptsRecord(
        name=prompts.name,
        revision=prompts.revision,
        split=prompts.split,
        column=prompts.column,
        digest=prompts.digest,
        spec=prompts.spec,
        duplicates=prompts.duplicates,
        splits=split.digests(),
        counts={name: len(getattr(split, name)) for name in ("train", "validation", "test")},
    )


def weights_digest(source: Source) -> str:
    """SHA-256 over the names and SHA-256s of the weight files."""
    lines = [
        f"{file.path} {file.sha256}" for file in source.files if file.path.endswith(".safetensors")
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
