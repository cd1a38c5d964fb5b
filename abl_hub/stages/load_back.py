"""After a push: what the Hub holds now, fetched again and held to the record before it is "done".

Bytes by SHA-256 against the record and the files here; then both models run on a few validation
prompts and must say what they say from this disk, where they are on it. The download is removed
afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel

from abl_hub.edits.delta import check_delta
from abl_hub.edits.peft_skeleton import quiet_about_biases
from abl_hub.edits.staging import check_space
from abl_hub.errors import HubError
from abl_hub.hub.fetch import fetch_published
from abl_hub.hub.payload import MANIFEST
from abl_hub.hub.publish import Published
from abl_hub.hub.source import Source
from abl_hub.model.divergence import apart, largest
from abl_hub.model.generate import next_token_logits
from abl_hub.model.meta import meta_model
from abl_hub.report.record import FormRecord, Record
from abl_hub.stages.forms import DELTA, MERGED
from abl_hub.stages.inputs import few_prompts, load_recorded, recorded_prompts, recorded_source
from abl_hub.stages.runtime import Runtime

_SAME = 1e-3
"""Largest difference of logits, as a share of the largest logit, between two loads of one file."""


@dataclass(frozen=True, kw_only=True)
class LoadedBack:
    """What the published artifacts were found to be.

    Args:
        files: files whose bytes are those of the record and of this disk.
        prompts: validation prompts that the models were run on.
        merged_apart: largest difference of next-token logits between the merged model as
            downloaded and on disk; None if it was not published, or streamed.
        delta_apart: the same for base plus delta; None if it was not published, or if the base
            is not whole on this disk. PEFT has then put it on the bare architecture.
    """

    files: int
    prompts: int
    merged_apart: float | None
    delta_apart: float | None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is needed to judge a published artifact, collected before anything is published."""

    prompts: tuple[str, ...]
    source: Source | None

    @property
    def base_is_here(self) -> bool:
        """Whether the base can be loaded from this disk."""
        return self.source is not None and not self.source.absent


def reference(
    record: Record, parts: Sequence[str], out: Path, runtime: Runtime, *, stream: bool = False
) -> Reference:
    """Collect what `load_back` needs, so that it fails before the push and not after it.

    Args:
        stream: do not fetch the base's weights.

    Raises:
        HubError: a file in `out` is not the one of the record.
        SourceError, ContrastError: source or prompts have changed since `extract`.
        OutputError: no room for the download.
    """
    here = [part for part in parts if (out / part).is_dir()]
    for part in here:
        for path, recorded in _recorded(record, part).items():
            if not (out / part / path).is_file() or _sha256(out / part / path) != recorded:
                raise HubError(
                    f"{out / part / path} is not published",
                    why="it is not the file of the record",
                    next_step=f"Run `abl-hub apply {out}` again",
                )
    source = None
    if DELTA in parts or (MERGED in parts and MERGED not in here):
        source = recorded_source(record, runtime, weights=not stream)
    wanted = Reference(prompts=(), source=source)
    if MERGED in here or (DELTA in here and wanted.base_is_here):
        wanted = replace(wanted, prompts=few_prompts(recorded_prompts(record, runtime)))
    sizes = (file.stat().st_size for part in here for file in (out / part).rglob("*"))
    check_space(out, sum(sizes))
    return wanted


def load_back(
    record: Record,
    folders: Mapping[str, Path],
    published: Mapping[str, Published],
    reference: Reference,
    scratch: Path,
    runtime: Runtime,
) -> LoadedBack:
    """Fetch what was published at its new commit and compare it with the record and what is here.

    A merged model that was streamed is fetched as it was sent, one shard at a time, and compared by
    its bytes; it cannot be loaded, because it is never whole on this disk. Where the base is not
    either, PEFT puts the delta on the bare architecture, and every tensor has to find its place.

    Args:
        folders: part → its files here.
        published: part → where it is now.
        scratch: an empty folder for the download, which the caller removes.

    Raises:
        HubError: something differs, or the Hub failed.
    """
    back = _Back(record, folders, published, reference, scratch, runtime)
    loaded = [part for part in (MERGED, DELTA) if part in published]
    if record.merged is not None and record.merged.streamed and MERGED in loaded:
        loaded.remove(MERGED)
    bare = DELTA in loaded and not reference.base_is_here
    with runtime.progress.stage("Loading back", len(published) + len(loaded)) as advance:
        files = 0
        for part in published:
            files += back.compare_files(part, keep=part in loaded)
            advance(1)
        apart: dict[str, float] = {}
        for part in loaded:
            if part == DELTA and bare:
                back.place_delta()
                advance(1)
                continue
            apart[part] = back.merged_apart() if part == MERGED else back.delta_apart()
            advance(1)
    return LoadedBack(
        files=files,
        prompts=len(reference.prompts),
        merged_apart=apart.get(MERGED),
        delta_apart=apart.get(DELTA),
    )


@dataclass(frozen=True)
class _Back:
    """What `load_back` was given."""

    record: Record
    folders: Mapping[str, Path]
    published: Mapping[str, Published]
    reference: Reference
    scratch: Path
    runtime: Runtime

    def compare_files(self, part: str, *, keep: bool) -> int:
        """Download a part; the number of files, all of them the same. `keep`: leave them there."""
        item, recorded = self.published[part], _recorded(self.record, part)
        lost = sorted(recorded.keys() - set(item.files))
        if lost:
            raise _differs(item, f"{lost[0]} of the record is not there")
        count = 0
        for path, file in fetch_published(
            item, self.scratch / part, token=self.runtime.token, endpoint=self.runtime.endpoint
        ):
            if path != MANIFEST:
                if _sha256(file) != (recorded.get(path) or _sha256(self.folders[part] / path)):
                    raise _differs(item, f"{path} came back with other bytes")
                count += 1
            if not keep:
                file.unlink()
        return count

    def merged_apart(self) -> float:
        """Largest difference of logits between the merged model as downloaded and here."""

        def logits(folder: Path) -> torch.Tensor:
            chat = load_recorded(folder, self.record, self.runtime)
            return next_token_logits(chat, self.reference.prompts)

        there, here = logits(self.scratch / MERGED), logits(self.folders[MERGED])
        return _apart(there, here, self.published[MERGED])

    def place_delta(self) -> None:
        """Have PEFT take the delta as downloaded, without the base's weights.

        Raises:
            EditError: it would drop or miss a tensor.
        """
        assert self.reference.source is not None  # collected whenever a delta is published
        blueprint = meta_model(
            self.reference.source.folder, trust_remote_code=self.runtime.trust_remote_code
        )
        check_delta(self.scratch / DELTA, blueprint)

    def delta_apart(self) -> float:
        """The same for the base with the delta."""
        assert self.reference.source is not None  # collected whenever a delta is published
        chat = load_recorded(self.reference.source.folder, self.record, self.runtime)

        def logits(folder: Path) -> torch.Tensor:
            with quiet_about_biases():
                wrapped = PeftModel.from_pretrained(chat.model, str(folder))
            adapted = replace(chat, model=wrapped)
            found = next_token_logits(adapted, self.reference.prompts)
            wrapped.unload()
            return found

        there, here = logits(self.scratch / DELTA), logits(self.folders[DELTA])
        return _apart(there, here, self.published[DELTA])


def _recorded(record: Record, part: str) -> dict[str, str]:
    """Path → SHA-256, of the files that the record names."""
    forms: dict[str, FormRecord | None] = {MERGED: record.merged, DELTA: record.delta}
    form = forms.get(part)
    return {file.path: file.sha256 for file in form.files} if form else {}


def _apart(there: torch.Tensor, here: torch.Tensor, item: Published) -> float:
    """Largest difference of logits.

    Raises:
        HubError: it is more than two loads of the same file can differ by.
    """
    found = apart(there, here)
    limit = _SAME * largest(here)
    if not found <= limit:  # NaN is a difference too
        raise _differs(item, f"its logits are {found:.1e} from those here (limit {limit:.0e})")
    return found


def _differs(item: Published, why: str) -> HubError:
    return HubError(
        f"{item.repo} at commit {item.commit[:8]} is not what was published",
        why=why,
        next_step=f"Look at {item.url}, and push again",
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
