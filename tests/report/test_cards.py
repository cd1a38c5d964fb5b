"""Cards from a record: true metadata, and nothing from outside can break out of the template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from abl_hub.directions.selection import Candidate
from abl_hub.errors import EvaluationError, SourceError
from abl_hub.evaluation.evaluate import Arm, Evaluation, Protocol, Rates
from abl_hub.evaluation.intervals import mean, proportion
from abl_hub.evaluation.verdict import Verdict
from abl_hub.report.card import render_card
from abl_hub.report.metadata import check_metadata
from abl_hub.report.plots import candidates_plot, deltas_plot
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import (
    AgreementRecord,
    DirectionRecord,
    EditRecord,
    FileRecord,
    Finalist,
    FormRecord,
    PromptsRecord,
    Record,
    SelectionRecord,
    SourceRecord,
    WriterRecord,
    load_record,
    save_record,
)
from abl_hub.report.space_card import render_space_card, space_config


def rates(refused: int) -> Rates:
    return Rates(
        refused=proportion(refused, 100),
        non_answers=proportion(1, 100),
        answered=proportion(99 - refused if refused < 99 else 0, 100),
    )


def full(refused: int) -> Arm:
    return Arm(
        positive=rates(refused),
        negative=rates(0),
        kl=mean([0.01, 0.02]),
        perplexity=mean([12.0, 13.0]),
    )


@pytest.fixture
def record() -> Record:
    prompts = PromptsRecord(
        name="org/prompts",
        revision="c" * 40,
        split="train",
        column="text",
        digest="d" * 64,
        duplicates=0,
        splits={"train": "a", "validation": "b", "test": "c"},
        counts={"train": 128, "validation": 32, "test": 100},
    )
    candidates = tuple(
        Candidate(
            layer=layer,
            position=position,
            norm=1.0,
            bypass=-float(layer),
            induce=float(layer),
            kl=0.01,
            discarded=None,
        )
        for layer in range(4)
        for position in (-2, -1)
    )
    form = FormRecord(files=(FileRecord(path="x", sha256="0" * 64, size_bytes=3),), notes=())
    return Record(
        schema=1,
        command="abl-hub convert org/model",
        versions={"torch": "2.13.0"},
        recipe=Recipe(source="org/model", positive="org/prompts", negative="org/others"),
        source=SourceRecord(
            name="org/model",
            repo="org/model",
            revision=None,
            commit="f" * 40,
            digest="e" * 64,
            licence="apache-2.0",
            licence_name=None,
            licence_link=None,
            licence_files=("LICENSE",),
        ),
        positive=prompts,
        negative=replace(prompts, name="org/others"),
        direction=DirectionRecord(
            behaviour="refusal",
            method="projected",
            layer=3,
            position=-1,
            norm=2.5,
            digest="1" * 64,
            layer_count=8,
            positions=2,
            width=64,
        ),
        selection=SelectionRecord(
            rule="the rule",
            chosen=candidates[-1],
            passed=True,
            finalists=(
                Finalist(
                    method="projected",
                    layer=3,
                    position=-1,
                    passed=True,
                    failures=0.0,
                    damage=0.0,
                    kl=0.01,
                ),
            ),
            candidates={"projected": candidates},
            behaviour_tokens=("I",),
            filtered=True,
        ),
        edit=EditRecord(
            digest="2" * 64,
            rank=1,
            exactness="exact",
            writers=(
                WriterRecord(parameter="w", axis=0, shape=(4, 4), strength=1.0, rescaled=False),
            ),
            rounding="nearest",
        ),
        merged=form,
        delta=replace(form, profile="complete"),
        agreement=AgreementRecord(
            prompts=8,
            hooks_merged=1e-6,
            hooks_delta=1e-6,
            merged_delta=1e-6,
            base_hooks=5.0,
            residual=1e-7,
        ),
        evaluation=Evaluation(
            base=full(98),
            edited=full(1),
            random=(full(97),),
            induced=Arm(negative=rates(90)),
            induced_random=Arm(negative=rates(2)),
            verdict=Verdict(label="SUPPORTED", reason="because"),
            protocol=Protocol(),
        ),
    )


@pytest.mark.parametrize(
    ("kind", "relation", "library"),
    [("merged", "finetune", "transformers"), ("delta", "adapter", "peft")],
)
def test_metadata_as_the_hub_reads_it(
    record: Record, kind: str, relation: str, library: str
) -> None:
    text = render_card(record, kind, repo="me/model-x", related={}, command="c")  # type: ignore[arg-type]
    data = ModelCard(text).data
    assert data.base_model == "org/model"
    assert data.base_model_relation == relation
    assert data.library_name == library
    assert data.license == "apache-2.0"
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["refusal rate"] == 0.01
    front = yaml.safe_load(text.split("---\n")[1])
    assert yaml.safe_load(yaml.safe_dump(front)) == front


def test_the_card_says_what_it_must(record: Record) -> None:
    text = render_card(record, "merged", repo="me/x", related={"delta": "me/d"}, command="the cmd")
    for needed in (
        "SUPPORTED",
        "0.98 [",
        "0.01 [",
        "0.97 [",
        "the cmd",
        "safeguard",
        "f" * 40,
        "me/d",
        "arditi2024refusal",
        "1.0e-06",
    ):
        assert needed in text


HOSTILE = "x`\n---\nlicense: mit\n# <script>alert(1)</script> [a](javascript:b) {{ 7 * 7 }} |"


def test_hostile_names_stay_text(record: Record) -> None:
    hostile = replace(
        record,
        source=replace(record.source, name=HOSTILE, repo=None),
        positive=replace(record.positive, name=HOSTILE, revision=HOSTILE),
        direction=replace(record.direction, behaviour=HOSTILE.replace("\n", " ")),
        versions={HOSTILE: HOSTILE},
    )
    for kind in ("merged", "delta"):
        text = render_card(
            hostile,
            kind,  # type: ignore[arg-type]
            repo=None,
            related={"merged": HOSTILE, "delta": HOSTILE, "space": HOSTILE},
            command=HOSTILE,
            duties=(HOSTILE,),
        )
        front, body = text.split("---\n", 2)[1:]
        assert yaml.safe_load(front)["license"] == "apache-2.0"
        page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
        assert "<script>" not in page
        assert 'javascript:b"' not in page
        assert "<h1>" in page
        assert page.count("<h1>") == 1
        assert "49" not in page.split("<h2>")[0]
        snippet = text.split("```python\n")[1].split("```")[0]
        compile(snippet, kind, "exec")


def test_no_evaluation_no_card(record: Record) -> None:
    with pytest.raises(EvaluationError, match="no evaluation"):
        render_card(replace(record, evaluation=None), "merged", repo=None, related={}, command="")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"license": "freeware"}, "license"),
        ({"license": "other"}, "license"),
        ({"base_model": "not a repo"}, "base_model"),
        ({"base_model_relation": "child"}, "base_model_relation"),
        ({"base_model_relation": None}, "base_model_relation"),
        ({"library_name": "numpy"}, "library_name"),
        ({"pipeline_tag": None}, "pipeline_tag"),
        ({"tags": ["a\nb"]}, "tags"),
    ],
)
def test_metadata_that_the_hub_would_reject(change: dict[str, object], field: str) -> None:
    good = {
        "license": "mit",
        "base_model": "org/model",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["a"],
    }
    check_metadata(good)
    with pytest.raises(EvaluationError, match=f"card's {field} "):
        check_metadata({**good, **change})


def test_a_record_survives_the_disk_and_a_foreign_one_is_refused(
    record: Record, tmp_path: Path
) -> None:
    path = save_record(record, tmp_path)
    assert load_record(tmp_path) == record
    for old, new in (
        (b'"schema": 1', b'"schema": 2'),
        (b'"rank": 1', b'"rank": "one"'),
        (b"{", b""),
    ):
        path.write_bytes(save_record(record, tmp_path).read_bytes().replace(old, new, 1))
        with pytest.raises(SourceError, match="schema"):
            load_record(tmp_path)


def test_plots_are_pictures_and_repeatable(record: Record, tmp_path: Path) -> None:
    for plot in (candidates_plot, deltas_plot):
        for name in ("one.png", "two.png"):
            plot(record, tmp_path / name)
        first = (tmp_path / "one.png").read_bytes()
        assert first == (tmp_path / "two.png").read_bytes()
        assert first.startswith(b"\x89PNG")
        assert len(first) < 150_000


def test_the_space_is_told_what_it_needs(record: Record) -> None:
    config = space_config(record, base="org/model", delta="me/delta")
    assert config["base_revision"] == "f" * 40
    assert [
        config["metrics"][0][key].split(" [")[0] for key in ("name", "base", "edited", "random")
    ] == ["rate, prompts that show it", "0.98", "0.01", "0.97"]
    readme = render_space_card(record, related={"delta": "me/delta"})
    front = yaml.safe_load(readme.split("---\n")[1])
    assert front["sdk"] == "gradio"
    assert front["models"] == ["org/model", "me/delta"]
