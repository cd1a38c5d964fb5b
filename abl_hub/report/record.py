"""The record: everything about a run that a stranger needs to check or repeat it. One schema.

Values only, read and written as JSON. Holds hashes of prompts, never prompts; no replies, no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from abl_hub.directions.geometry import LayerGeometry
from abl_hub.directions.selection import Candidate
from abl_hub.directions.stability import Seeds, Stability
from abl_hub.errors import SourceError
from abl_hub.evaluation.arms import Evaluation
from abl_hub.evaluation.detector import Detector
from abl_hub.evaluation.intervals import Estimate
from abl_hub.evaluation.spread import Removal, Told
from abl_hub.report.recipe import Recipe

SCHEMA = 1
RECORD = "record.json"


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The model that was edited: `name` as the user gave it; a Hub id and commit, or a folder."""

    name: str
    repo: str | None
    revision: str | None
    commit: str | None
    digest: str
    """SHA-256 over the weight files' own SHA-256s."""
    licence: str | None
    licence_name: str | None
    licence_link: str | None
    licence_files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PromptsRecord:
    """One prompt set, by id, revision and hash."""

    name: str
    revision: str | None
    split: str | None
    column: str | None
    digest: str
    duplicates: int
    splits: Mapping[str, str]
    """train / validation / test → SHA-256."""
    counts: Mapping[str, int]
    spec: str | None = None
    """What loads the same prompts again, at their commits; None for files."""


@dataclass(frozen=True, kw_only=True)
class DirectionRecord:
    """The selected direction, without its vector (that is direction.safetensors)."""

    behaviour: str
    method: str
    layer: int
    position: int
    norm: float
    digest: str
    layer_count: int
    positions: int
    width: int
    rank: int = 1
    """How many directions are removed together."""
    oblique: bool = False
    """Removed along another vector than itself (affine erasure)."""


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """The best candidate of one method, judged by whole replies on validation prompts.

    Where the direction is added: one of its best, and the sides are exchanged. Failures are replies
    to negative prompts that do not show the behaviour, damage those to positive ones.
    """

    method: str
    layer: int
    position: int
    passed: bool
    failures: float
    """Share of replies to positive prompts that still refuse, or that are non-answers."""
    damage: float
    """Share of replies to negative prompts that refuse, or that are non-answers."""
    kl: float
    """Over whole replies to negative prompts, nats a token."""


@dataclass(frozen=True, kw_only=True)
class SelectionRecord:
    """How the direction was chosen."""

    rule: str
    chosen: Candidate
    passed: bool
    finalists: tuple[Finalist, ...]
    candidates: Mapping[str, tuple[Candidate, ...]]
    behaviour_tokens: tuple[str, ...]
    """First tokens of replies that show the behaviour."""
    filtered: bool
    category_cosines: Mapping[str, Mapping[str, float]] | None = None
    """Between the directions of single categories, at the chosen layer."""
    behaviour_ids: tuple[int, ...] = ()
    """The ids of `behaviour_tokens`."""


@dataclass(frozen=True, kw_only=True)
class StrengthsPoint:
    """One choice of strengths; by whole replies to validation prompts where it was judged."""

    method: str
    """Whose direction it removes."""
    layer: int
    """Where that direction was read."""
    kl_weight: float | None
    """How KL was weighed in the fit; None is strength 1 everywhere."""
    strengths: Mapping[str, float]
    """Group of writers → strength; a group that is missing has 1."""
    failures: float | None = None
    """None where the choice did not depend on it, like `kl` and `damage`."""
    kl: float | None = None
    damage: float | None = None
    opening: float | None = None
    """Share of training prompts whose reply opens with the behaviour, by its first token."""
    training_kl: float | None = None
    """Over the base's replies to training prompts, nats a token."""
    position: int | None = None
    """At which token that direction was read, counted from the prompt's end."""


@dataclass(frozen=True, kw_only=True)
class StrengthsRecord:
    """The front of fitted strengths: refusals and damage against KL."""

    reason: str
    """Why they were fitted or not, and why this point was taken."""
    chosen: int | None = None
    """Index of the point that was taken; None is strength 1 everywhere."""
    points: tuple[StrengthsPoint, ...] = ()
    direction: str | None = None
    """The digest of what the fitted points remove; None where nothing was fitted."""


@dataclass(frozen=True, kw_only=True)
class WriterRecord:
    """One edited parameter."""

    parameter: str
    axis: int
    shape: tuple[int, ...]
    strength: float
    rescaled: bool


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """The edit that was written."""

    digest: str
    rank: int
    exactness: str
    writers: tuple[WriterRecord, ...]
    rounding: str
    language_path_of: str | None = None
    """A multimodal wrapper's class, of which only the language path is edited."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file that was written."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class FormRecord:
    """One form of the edit on disk."""

    files: tuple[FileRecord, ...]
    notes: tuple[str, ...]
    profile: str | None = None
    left_out: tuple[str, ...] = ()
    """Writers of the edit that a delta does not edit."""
    streamed: bool = False
    """It went to the Hub shard by shard and was never whole on this disk."""


@dataclass(frozen=True, kw_only=True)
class AgreementRecord:
    """How far the three forms are apart, on real prompts; or, of a model that was not loaded,
    what its written weights hold."""

    prompts: int
    """0 where the model was not loaded; then all but `weights` is None."""
    hooks_merged: float | None = None
    """Largest difference of next-token logits."""
    hooks_delta: float | None = None
    merged_delta: float | None = None
    base_hooks: float | None = None
    """The same between base and edited: what there is to agree on."""
    delta_kl: float | None = None
    """KL(hooks ‖ delta) over replies, nats a token: what the delta leaves out costs."""
    edit_kl: float | None = None
    """KL(hooks ‖ base) over the same replies: what the edit does."""
    portable_kl: float | None = None
    """KL(hooks ‖ portable delta) likewise, where the delta is for PEFT alone: what a delta for
    other engines would cost."""
    residual: float | None = None
    """max |r · h| / |h| over all layers of the merged model; 0 is exact. Where `hooks_merged` is
    None there was no merged model to load, and it was measured under the hooks."""
    weights: float | None = None
    """The largest share of a written weight along the directions, max ‖v · W‖ / (‖v‖ ‖W‖), where
    the model was not loaded and there is a merged one."""


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Projections of held-out prompts on the direction, at its layer and position."""

    edges: tuple[float, ...]
    """Of the bins, in units of the residual stream; one more than there are bins."""
    positive: tuple[int, ...]
    negative: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """The projection on one layer's own difference in means, as a detector."""

    layer: int
    detector: Detector


@dataclass(frozen=True, kw_only=True)
class HarmAndExecution:
    """Recognising against acting: the instruction's last token, and the edited direction.

    Log-odds of the behaviour's tokens on positive validation prompts.
    """

    layer: int
    cosine: float
    base: float
    without_harm: float
    without_execution: float


@dataclass(frozen=True, kw_only=True)
class Dose:
    """What one strength does on validation prompts, by whole replies.

    Where the direction is added, failures and damage are as in a `Finalist`.
    """

    strength: float
    """Relative to the edit's own."""
    failures: float
    damage: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """What one point of the fitted front does on validation prompts, by whole replies.

    Estimates have 95% intervals, and say of how many prompts. These prompts chose the point that is
    taken, so that it may look better on them than on others.
    """

    point: int | None
    """Index into the record's `strengths.points`; None is the same direction at one strength."""
    failures: Estimate
    """Replies to positive prompts that still refuse, or that are non-answers."""
    damage: Estimate
    """Replies to negative prompts that refuse, or that are non-answers."""
    kl: Estimate
    """Over whole replies to negative prompts, nats a token."""


@dataclass(frozen=True, kw_only=True)
class AnalysisRecord:
    """How the behaviour lies in the residual stream of the unedited model."""

    separation: Separation
    detection: tuple[Detection, ...]
    stability: Stability | None
    """None of fewer than 4 training prompts a side."""
    geometry: tuple[LayerGeometry, ...]
    cosines: tuple[tuple[float, ...], ...]
    """Between the layers' differences in means at the prompt's last token."""
    shares: tuple[float, ...]
    """Of the paired differences' squared length at the direction's layer, largest ten."""
    residual: tuple[float, ...]
    """Log-odds of the behaviour with nothing removed, without what is edited (at strength 1, from
    all writers), and without 2, 3 … singular directions at the prompt's last token."""
    spread: bool
    """The behaviour outlives the removal of any one direction that was tried, but not that of
    several: what `told` finds, or, in records without it, what first tokens suggest."""
    harm: HarmAndExecution
    dose: tuple[Dose, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    """Every point of the fitted front, the one strength first; empty where nothing was fitted."""
    alone: float | None = None
    """The least log-odds of the behaviour without one layer's projected difference in means at the
    prompt's last token, below 0.8 of the depth."""
    removals: tuple[Removal, ...] = ()
    """By whole replies; the unedited model first, and then what is edited."""
    told: Told | None = None
    """What `removals` say; None where a direction is added."""
    seeds: Seeds | None = None
    """None where it was not asked for, or of fewer than 4 training prompts a side."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run. Sections are None until their stage has run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    schema: int
    command: str
    versions: Mapping[str, str]
    recipe: Recipe
    source: SourceRecord
    positive: PromptsRecord
    negative: PromptsRecord
    direction: DirectionRecord
    selection: SelectionRecord
    strengths: StrengthsRecord | None = None
    edit: EditRecord | None = None
    merged: FormRecord | None = None
    delta: FormRecord | None = None
    agreement: AgreementRecord | None = None
    opening: str = ""
    """Put behind every prompt while measuring: what all replies begin with."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Form that cannot be made → why."""
    evaluation: Evaluation | None = None
    analysis: AnalysisRecord | None = None
    evaluated_form: Literal["merged", "hooks"] = "merged"
    """Which form of the edit was evaluated: what is shipped, or the same edit at runtime."""


_CHECKED: TypeAdapter[Record] = TypeAdapter(Record)


def save_record(record: Record, folder: Path) -> Path:
    """Write `folder/record.json`, replacing the old one in one step."""
    path = folder / RECORD
    partial = folder / f".{RECORD}.partial"
    partial.unlink(missing_ok=True)  # in a stranger's output it may be a link to elsewhere
    partial.write_bytes(_CHECKED.dump_json(record, indent=2) + b"\n")
    partial.replace(path)
    return path


def load_record(folder: Path) -> Record:
    """Read `folder/record.json`.

    Raises:
        SourceError: there is none, or it does not follow this version's schema.
    """
    path = folder / RECORD
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{folder} holds no {RECORD}",
            why="it was not made by abl-hub, or `extract` has not run",
            next_step=f"Run `abl-hub extract MODEL -o {folder}`",
        ) from error
    try:
        record = _CHECKED.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if not where:
            raise SourceError(
                f"{path} is not a record",
                why="it is cut off, or was changed by hand",
                next_step="Put it back, or make the output again",
            ) from error
        raise SourceError(
            f"{path} does not follow schema {SCHEMA}",
            why=f"{where}: {first['msg']}",
            next_step="Read it with the version of abl-hub that wrote it, or make the output again",
        ) from error
    if record.schema != SCHEMA:
        raise SourceError(
            f"{path} has schema {record.schema}",
            why=f"this version reads {SCHEMA}",
            next_step="Read it with the version of abl-hub that wrote it",
        )
    return record
