"""One HTML page from a record, for a reader who wants to check: numbers, pictures, one command.

Self-contained: no script, no network; pictures are inside. Names from outside are escaped.
"""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from abl_hub.errors import EvaluationError
from abl_hub.report.card import rate, table
from abl_hub.report.figures import DPI, figures
from abl_hub.report.plots import candidates_plot, deltas_plot
from abl_hub.report.record import Record
from abl_hub.report.reproduce import reproduce
from abl_hub.resources import templates

PAGE = "report.html"


def write_report(record: Record, folder: Path) -> Path:
    """Write `folder`/report.html and its pictures as PNG beside it.

    Raises:
        EvaluationError: the record has no evaluation.
    """
    evaluation = record.evaluation
    if evaluation is None:
        raise EvaluationError(
            "The record has no evaluation",
            why="there is nothing to report",
            next_step="Run `abl-hub evaluate` first",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in figures(record).items():
        (folder / f"{name}.png").write_bytes(content)
    candidates_plot(record, folder / "candidates.png")
    deltas_plot(record, folder / "deltas.png")
    pictures = {path.stem: _picture(path) for path in sorted(folder.glob("*.png"))}
    environment = Environment(
        loader=FileSystemLoader(templates("cards")),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = lambda words: words[:1].upper() + words[1:]
    text = environment.get_template("report.html.jinja").render(
        record=record,
        evaluation=evaluation,
        analysis=record.analysis,
        strengths=record.strengths,
        rows=table(record),
        rate=rate,
        pictures=pictures,
        command=reproduce(record),
        base=record.source.repo or Path(record.source.name).name,
    )
    page = folder / PAGE
    page.write_text(text, encoding="utf-8")
    return page


def _picture(path: Path) -> tuple[str, int]:
    """A PNG in base64, and its width on the page in CSS pixels."""
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the header, which every PNG begins with
    return base64.b64encode(content).decode(), 100 * width // DPI
