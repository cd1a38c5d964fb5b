"""The report page: one file, every picture inside, nothing from outside breaks out."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from abl_hub.directions.geometry import LayerGeometry
from abl_hub.directions.stability import Seeds, Stability
from abl_hub.errors import EvaluationError
from abl_hub.evaluation.detector import Detector
from abl_hub.evaluation.intervals import Estimate, proportion
from abl_hub.evaluation.spread import Removal, Told
from abl_hub.report.page import write_report
from abl_hub.report.plots import candidates_plot
from abl_hub.report.record import (
    AnalysisRecord,
    Detection,
    Dose,
    FrontPoint,
    HarmAndExecution,
    Record,
    Separation,
    StrengthsPoint,
    StrengthsRecord,
)

HOSTILE = "</title><script>alert(1)</script>{{ 7 * 7 }}"


def analysis() -> AnalysisRecord:
    sure = Estimate(value=0.9, low=0.8, high=1.0, count=10)
    return AnalysisRecord(
        separation=Separation(edges=(0.0, 1.0, 2.0), positive=(1, 4), negative=(5, 0)),
        detection=tuple(
            Detection(layer=layer, detector=Detector(accuracy=sure, auc=sure)) for layer in range(2)
        ),
        stability=Stability(
            halves=0.9, bootstrap_low=0.8, bootstrap_median=0.95, same_layer=1.0, draws=5
        ),
        geometry=tuple(
            LayerGeometry(
                layer=layer, norm=1.0, to_ordinary=0.1, separation=2.0, effective_rank=1.5
            )
            for layer in range(2)
        ),
        cosines=((1.0, 0.5), (0.5, 1.0)),
        shares=(0.8, 0.2),
        residual=(3.0, 1.0, -2.0),
        spread=True,
        removals=(
            Removal(how="none", directions=0, layer=0, shown=1.0, non_answers=0.0, damage=0.0),
            Removal(how="edit", directions=1, layer=1, shown=0.9, non_answers=0.0, damage=0.0),
        ),
        told=Told(finding="several", reason="two together leave it on 0.00", directions=2),
        harm=HarmAndExecution(
            layer=1, cosine=0.2, base=3.0, without_harm=2.5, without_execution=1.0
        ),
        dose=(Dose(strength=0.0, failures=1.0, damage=0.0, kl=0.0),),
        front=tuple(
            FrontPoint(
                point=point,
                failures=proportion(failed, 8),
                damage=proportion(0, 8),
                kl=Estimate(value=kl, low=0.5 * kl, high=2 * kl, count=8),
            )
            for point, failed, kl in ((None, 2, 0.2), (0, 0, 0.1))
        ),
    )


def strengths() -> StrengthsRecord:
    point = StrengthsPoint(
        method="projected", layer=1, kl_weight=300.0, strengths={"1.mlp": 0.5}, failures=0.0, kl=0.1
    )
    return StrengthsRecord(reason="lowest KL", chosen=0, points=(point,))


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag == "img":
            self.sources.append(dict(attrs).get("src") or "")


def test_everything_is_inside_and_beside(record: Record, tmp_path: Path) -> None:
    page = write_report(replace(record, analysis=analysis(), strengths=strengths()), tmp_path)
    text = page.read_text()
    parsed = _Images()
    parsed.feed(text)
    assert len(parsed.sources) == 8
    assert "one for all</td><td>0.25 [0.07, 0.59]" in text
    assert "fitted, KL weighed 300 (taken)</td><td>0.00 [0.00, 0.32]" in text
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert names == {
        "candidates",
        "deltas",
        "detector",
        "dose",
        "front",
        "geometry",
        "residual",
        "separation",
    }
    assert "spread over several directions: two together leave it on 0.00." in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_what_is_not_known_of_a_few_prompts_is_said(record: Record, tmp_path: Path) -> None:
    whole = analysis()
    geometry = tuple(replace(one, separation=None) for one in whole.geometry)
    few = replace(whole, stability=None, geometry=geometry)
    text = write_report(replace(record, analysis=few), tmp_path).read_text()
    assert "stability is not measured" in text


def test_numbers_of_another_direction_say_so(record: Record, tmp_path: Path) -> None:
    seeds = Seeds(
        count=5, cosine_min=0.7, cosine_mean=0.8, same_layer=0.6, method="projected", position=-1
    )
    one = replace(record, analysis=replace(analysis(), seeds=seeds))
    text = write_report(one, tmp_path).read_text()
    assert "not what is edited" not in text
    assert "From 5 other splits of the prompts, the direction has a cosine of 0.800" in text
    other = replace(one, direction=replace(record.direction, method="difference", position=-2))
    shown = replace(
        record.selection, candidates={"difference": record.selection.candidates["projected"]}
    )
    text = write_report(replace(other, selection=shown), tmp_path).read_text()
    assert (
        text.count("the projected difference in means at the last token (not what is edited)") == 2
    )


def test_the_doses_of_an_addition_are_called_what_they_are(record: Record, tmp_path: Path) -> None:
    one = replace(record, analysis=analysis(), recipe=replace(record.recipe, induce=True))
    assert "still without it" in write_report(one, tmp_path).read_text()


def test_a_record_without_analysis_has_a_shorter_page(record: Record, tmp_path: Path) -> None:
    text = write_report(record, tmp_path).read_text()
    assert "What the edit did" in text
    assert "Where the behaviour lies" not in text


def test_hostile_names_stay_text(record: Record, tmp_path: Path) -> None:
    hostile = replace(
        record,
        source=replace(record.source, name=HOSTILE, repo=None),
        positive=replace(record.positive, name=HOSTILE),
        direction=replace(record.direction, behaviour=HOSTILE),
    )
    text = write_report(hostile, tmp_path).read_text()
    parsed = _Images()
    parsed.feed(text)
    assert parsed.scripts == 0
    assert "&lt;script&gt;" in text
    assert "49" not in re.sub(r"base64,[^\"]*", "", text).split("<body>")[0]


def test_the_same_record_gives_the_same_page(record: Record, tmp_path: Path) -> None:
    one = write_report(replace(record, analysis=analysis()), tmp_path / "a").read_bytes()
    other = write_report(replace(record, analysis=analysis()), tmp_path / "b").read_bytes()
    assert one == other


def test_the_direction_that_was_edited_is_marked(record: Record, tmp_path: Path) -> None:
    """With fitted strengths it may lie deeper than the candidate that was chosen first."""
    deeper = replace(record, direction=replace(record.direction, layer=6))
    other = replace(record.selection, chosen=record.selection.candidates["projected"][0])
    drawn = []
    for number, one in enumerate((record, deeper, replace(record, selection=other))):
        candidates_plot(one, tmp_path / f"{number}.png")
        drawn.append((tmp_path / f"{number}.png").read_bytes())
    assert drawn[0] != drawn[1]
    assert drawn[0] == drawn[2]


def test_nothing_to_report(record: Record, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no evaluation"):
        write_report(replace(record, evaluation=None), tmp_path)


def test_the_page_is_fit_for_dark_and_for_sharp_screens(record: Record, tmp_path: Path) -> None:
    page = write_report(replace(record, analysis=analysis()), tmp_path).read_text()
    assert "prefers-color-scheme: dark" in page
    widths = [int(width) for width in re.findall(r'<img [^>]*width="(\d+)"', page)]
    assert len(widths) == len(re.findall("<img ", page)) >= 5
    for picture in tmp_path.glob("*.png"):
        pixels = int.from_bytes(picture.read_bytes()[16:20], "big")
        assert pixels // 2 in widths
