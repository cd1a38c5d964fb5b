"""Pieces for the page: coloured tokens, what changed. Text in, text out; escapes all of it.

Knows no model and no Gradio.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Tokens = Sequence[tuple[str, float]]
"""Each token of a reply and its projection on the direction."""

ALONG, AGAINST = (234, 88, 12), (37, 99, 235)
_STRONGEST = 0.6  # opacity: text must stay readable on it, in light and in dark

# `://`, `@` and `www.` begin links on their own.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&!@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)

CSS = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
.about p {opacity: 0.85; margin: 0}
#before, #after {height: 44vh !important; min-height: 260px}
/* their contents scroll or wrap: they never make the page wider */
#before, #after, #tokens, #changes {contain: inline-size}
#before .prose, #after .prose {overflow-wrap: anywhere}
#tokens .legend {display: flex; gap: 0.6rem; align-items: center; flex-wrap: wrap;
  font-size: 0.85rem; margin-bottom: 0.5rem}
#tokens .bar {width: 8rem; height: 0.7rem; border-radius: 4px}
#tokens .both {display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr));
  gap: 1rem}
#tokens h3, #changes h3 {font-size: 0.95rem; margin: 0.2rem 0}
#tokens .tokens {line-height: 1.9; font-family: var(--font-mono); font-size: 0.9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0}
#tokens .tokens span {border-radius: 3px; padding: 2px 0}
#changes .scroll {overflow-x: auto; margin: 0.5rem 0 1rem}
#changes table {border-collapse: collapse; width: 100%}
#changes table, #changes table * {border: 0 !important}
#changes th, #changes td {text-align: left; padding: 0.3rem 0.8rem 0.3rem 0 !important;
  white-space: nowrap}
#changes td:first-child {white-space: normal; min-width: 7.5rem}
#changes table tr {border-bottom: 1px solid var(--border-color-primary) !important}
#changes img {max-width: 100%; border-radius: 6px; margin: 0.5rem 0}
@media (max-width: 640px) {
  #before, #after {height: 34vh !important; min-height: 220px}
}
"""


def as_markdown(text: str) -> str:
    """The text as it is, in Markdown: it begins no markup, link or picture."""
    return _MARKUP.sub(r"\\\1", text)


def token_view(before: Tokens, after: Tokens, *, behaviour: str) -> str:
    """Both replies, each token coloured by its projection: orange along, blue against."""
    largest = max((abs(value) for _, value in (*before, *after)), default=0.0)
    if not largest:
        return (
            "<p>Ask something: each token of both replies is then coloured by how far the residual "
            f"stream points along the direction for {html.escape(behaviour)}.</p>"
        )
    sides = "".join(
        f'<section aria-label="Tokens {name.lower()}"><h3>{name}: mean {_mean(tokens)}</h3>'
        f'<p class="tokens">{_spans(tokens, largest)}</p></section>'
        for name, tokens in (("Before", before), ("After", after))
    )
    return f'{_legend(largest)}<div class="both">{sides}</div>'


def _mean(tokens: Tokens) -> str:
    return f"{sum(value for _, value in tokens) / len(tokens):+.2f}" if tokens else "none yet"


def _spans(tokens: Tokens, largest: float) -> str:
    return "".join(
        f'<span style="background:{_colour(value / largest)}" title="{value:+.2f}">'
        f"{html.escape(piece)}</span>"
        for piece, value in tokens
    )


def _legend(largest: float) -> str:
    bar = f"linear-gradient(to right,{_colour(-1)},{_colour(0)},{_colour(1)})"
    return (
        '<div class="legend">Projection of each token on the direction:'
        f"<span>{-largest:+.1f}</span>"
        f'<span class="bar" style="background:{bar}" role="img" '
        'aria-label="blue: against the direction, orange: along it"></span>'
        f"<span>{largest:+.1f}</span></div>"
    )


def _colour(share: float) -> str:
    """From -1 (blue) to 1 (orange); transparent at 0, so that it reads in light and dark."""
    red, green, blue = ALONG if share > 0 else AGAINST
    return f"rgba({red},{green},{blue},{min(abs(share), 1.0) * _STRONGEST:.2f})"


def changes(config: dict[str, Any], folder: Path) -> str:
    """What the record says: deltas with intervals and the control, layer, plots, safety."""
    names = ("name", "base", "edited", "random")
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row[name]))}</td>" for name in names) + "</tr>"
        for row in config["metrics"]
    )
    plots = "".join(
        f'<figure><img alt="{html.escape(plot["alt"])}" src="{_inline(folder / plot["file"])}">'
        "</figure>"
        for plot in config["plots"]
    )
    return (
        f"<h3>{html.escape(config['verdict'])}</h3>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Metrics"><table><thead><tr>'
        '<th scope="col">metric</th><th scope="col">base</th><th scope="col">edited</th>'
        f'<th scope="col">random direction</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"<p>The direction was read at layer {int(config['layer'])}, token position "
        f"{int(config['position'])} from the prompt's end. Brackets are 95% intervals; the random "
        "direction was treated in the same way, as a control.</p>"
        f"{plots}<p>{html.escape(config['note_on_safety'])}</p>"
    )


def _inline(image: Path) -> str:
    """A PNG inside the page: no second request, no folder opened to the web."""
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
