"""Names, revisions, files and behaviours come from strangers: none breaks out of a card."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from abl_hub.report.card import Kind, render_card
from abl_hub.report.record import Record
from abl_hub.report.space_card import render_space_card

HOSTILE = (
    "x`\n---\nlicense: mit\n# <script>alert(1)</script> [a](javascript:b) {{ 7 * 7 }} {% x %} | "
    "``` ''' \" ~~~ <!-- ![i](http://evil.example/x.png) http://evil.example www.evil.example "
    "a@evil.example \u202e\x00 \\"
)
KINDS: tuple[Kind, ...] = ("merged", "delta", "direction")
OURS = set(re.findall(r"\w+", "h1 h2 p strong em code pre table thead tbody tr th td ul li img a"))


@pytest.fixture
def hostile(record: Record) -> Record:
    """Everything that comes from outside wants to break out."""
    side = replace(record.positive, name=HOSTILE, split=HOSTILE, column=HOSTILE)
    return replace(
        record,
        source=replace(
            record.source,
            name=HOSTILE,
            repo=None,
            commit=HOSTILE,
            licence="other",
            licence_name=HOSTILE,
            licence_link=HOSTILE,
            licence_files=(HOSTILE,),
        ),
        recipe=replace(record.recipe, system=HOSTILE, behaviour=HOSTILE),
        positive=replace(side, revision=HOSTILE),
        negative=replace(side, revision=None),
        direction=replace(record.direction, behaviour=HOSTILE, method=HOSTILE),
        versions={HOSTILE: HOSTILE},
    )


def page_of(body: str) -> str:
    """As GitHub-flavoured Markdown, with HTML let through."""
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(body)


@pytest.mark.parametrize("kind", [*KINDS, "space"])
@pytest.mark.parametrize("repo", [None, "me/x"])
def test_hostile_names_stay_text(hostile: Record, kind: Kind, repo: str | None) -> None:
    around = dict.fromkeys(("merged", "delta", "space", "direction"), HOSTILE)
    asked = {"notices": (HOSTILE,), "duties": (HOSTILE,)}
    if kind not in KINDS:
        text = render_space_card(hostile, related=around if repo is None else {}, **asked)
    else:
        text = render_card(hostile, kind, repo=repo, related=around, **asked)
    front, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["license"] == "other"
    page = page_of(body)
    assert page.count("<h1>") == 1
    assert set(re.findall(r"<(\w+)", page)) <= OURS
    targets = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert not [target for target in targets if re.search("evil|javascript", target)]
    assert "<!--" not in page
    assert "alert(1)" in page  # shown, as text
    assert "{{ 7 * 7 }}" in page.replace("&#123;", "{").replace("&#125;", "}") or "7 * 7" in page
    assert not set("\u202e\x00") & set(text)
    for snippet in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
        compile(snippet, kind, "exec")


def test_unescaped_it_would_break_out() -> None:
    page = page_of(HOSTILE)
    assert "<script>" in page
    assert "http://evil.example/x.png" in page
