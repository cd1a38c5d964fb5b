"""The survey calls a family exact only where every form of the edit is the same edit."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import survey

_PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def _rows() -> list[dict[str, str]]:
    rows = []
    for line in _PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| family"):
            columns = cells
        elif line.startswith("| "):
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def _only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text)
    return str(found)


def test_one_family_of_each_kind() -> None:
    assert survey.survey("llama", wrapper=False).outcome == "exact"
    assert survey.survey("bart", wrapper=False).outcome.startswith("refused: ")
    assert survey.survey("xglm", wrapper=False).outcome.startswith("refused: by the numeric check")


@pytest.mark.parametrize("wrong", ["merged", "delta"])
@pytest.mark.parametrize("error", [1e-2, float("nan")])
def test_a_form_that_differs_is_not_exact(
    wrong: str, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is clean in all of these: weights beside the writers were lost."""
    real = getattr(survey, f"_{wrong}")

    def differing(*args: object) -> survey.Form:
        form = real(*args)
        return replace(form, logits=form.logits + torch.tensor(error))

    monkeypatch.setattr(survey, f"_{wrong}", differing)
    assert survey.survey("llama", wrapper=False).outcome.startswith("not exact: the ")


def test_the_page_says_of_its_rows_what_they_say() -> None:
    rows = _rows()
    kinds = Counter(re.split(r"[,:]", row["outcome"])[0] for row in rows)
    text = _PAGE.read_text(encoding="utf-8")
    causal, wrappers, refused, wrong = (
        int(_only(rf"(\d+) {words}", text))
        for words in ("causal language models and", "multimodal", "are refused", "are traced")
    )
    assert causal + wrappers == kinds["exact"] + kinds["exact null"]
    assert refused == kinds["refused"]
    assert wrong == kinds["not exact"]
    assert set(kinds) <= {"exact", "exact null", "refused", "not exact"}
    for row in rows:
        if row["outcome"].startswith("exact"):
            assert float(row["before"]) > 0.05
            assert float(row["after"]) <= 1e-5
            assert float(row["merged"]) <= survey.AGREES
            assert row["delta"].startswith("leaves out") or float(row["delta"]) <= survey.AGREES
        else:
            assert len(row["outcome"].partition(": ")[2]) > 10
