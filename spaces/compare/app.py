"""Before and after, side by side: one base in memory, its delta switched on and off.

Reads `space.json` beside it. Nothing that is said here is logged or kept.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import torch
from pair import Pair, Reply, Sampling

try:  # only on ZeroGPU hardware
    from spaces import GPU

    on_gpu: Any = GPU(duration=120)
except ImportError:

    def on_gpu(function: Any) -> Any:
        return function


HERE = Path(__file__).resolve().parent
CSS = """
.verdict {font-size: 0.95rem; opacity: 0.85}
.tokens {line-height: 1.9; font-family: var(--font-mono); white-space: pre-wrap}
.tokens span {border-radius: 3px; padding: 1px 0}
.gradio-container {max-width: 1200px !important; margin: 0 auto}
@media (max-width: 640px) {.sides {flex-direction: column}}
"""
SETTINGS = ("strength", "temperature", "top_p", "seed", "max_new_tokens", "system")
Messages = list[dict[str, Any]]


def build(config: dict[str, Any], *, folder: Path = HERE) -> gr.Blocks:
    """The page for one configuration; loads the model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pair = Pair(config, device=device, folder=str(folder))

    @on_gpu
    def answer(
        message: str,
        before: Messages,
        after: Messages,
        strength: float,
        temperature: float,
        top_p: float,
        seed: float,
        max_new_tokens: float,
        system: str,
    ) -> Iterator[tuple[Messages, Messages, str, str]]:
        """Stream both replies to `message`."""
        if not message.strip():
            yield before, after, "", ""
            return
        asked = {"role": "user", "content": message}
        before, after = [*before, asked], [*after, asked]
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            seed=int(seed),
            max_new_tokens=int(max_new_tokens),
        )
        for old, new in pair.replies(
            turns(before, system), turns(after, system), strength=strength, sampling=sampling
        ):
            yield (
                [*before, {"role": "assistant", "content": old.text}],
                [*after, {"role": "assistant", "content": new.text}],
                "",
                token_view(old, new),
            )

    def again(
        before: Messages, after: Messages, *settings: Any
    ) -> Iterator[tuple[Messages, Messages, str, str]]:
        """Ask the last question once more."""
        question = next((m for m in reversed(before) if m["role"] == "user"), None)
        if question is None:
            return
        kept = before[: before.index(question)], after[: len(before[: before.index(question)])]
        yield from answer(text_of(question), *kept, *settings)

    page: gr.Blocks
    with gr.Blocks(title=config["title"]) as page:
        gr.Markdown(f"# {config['title']}")
        gr.Markdown(
            f"The same model before and after its direction for **{config['behaviour']}** was "
            f"removed. {config['verdict']}",
            elem_classes="verdict",
        )
        with gr.Row(elem_classes="sides"):
            left = gr.Chatbot(label="Before (base)", elem_id="before", buttons=["copy"])
            right = gr.Chatbot(label="After (edited)", elem_id="after", buttons=["copy"])
        box = gr.Textbox(
            label="Message to both", placeholder="Ask both something", elem_id="message"
        )
        with gr.Row():
            # Narrow enough for all four to share a line on a phone.
            send = gr.Button("Send", variant="primary", elem_id="send", min_width=60)
            stop = gr.Button("Stop", min_width=60)
            retry = gr.Button("Retry", min_width=60)
            clear = gr.Button("Clear", min_width=60)
        gr.Examples(config["examples"], inputs=box, label="Examples")
        strength = gr.Slider(
            0,
            1.5,
            value=1.0,
            step=0.05,
            label="Strength of the edit (0 is the base, 1 removes the direction)",
            elem_id="strength",
            visible=pair.switchable,
        )
        with gr.Accordion("Settings", open=False):
            temperature = gr.Slider(0, 2, value=0.0, step=0.05, label="Temperature (0: greedy)")
            top_p = gr.Slider(0.05, 1, value=1.0, step=0.05, label="Top p")
            seed = gr.Number(value=0, precision=0, label="Seed")
            length = gr.Slider(1, 1024, value=128, step=1, label="Longest reply, tokens")
            system = gr.Textbox(value="", label="System prompt", lines=2)
            link = gr.Textbox(
                label="These settings as a link",
                interactive=False,
                buttons=["copy"],
                elem_id="link",
            )
            share = gr.Button("Make link")
        with gr.Accordion("Token by token: projection on the direction", open=False):
            view = gr.HTML(elem_id="tokens", value="<p>Nothing said yet.</p>")
        with gr.Accordion("What changed", open=False):
            gr.HTML(changes(config))
        settings = [strength, temperature, top_p, seed, length, system]
        outputs = [left, right, box, view]
        running: Any = [
            box.submit(
                answer, [box, left, right, *settings], outputs, api_name="chat", concurrency_limit=8
            ),
            send.click(answer, [box, left, right, *settings], outputs, concurrency_limit=8),
            retry.click(again, [left, right, *settings], outputs, concurrency_limit=8),
        ]
        stop.click(None, cancels=running)
        clear.click(lambda: ([], [], "", ""), outputs=outputs)
        share.click(as_link, settings, link)
        page.load(from_link, settings, settings)
    return page


def turns(messages: Messages, system: str | None) -> list[dict[str, str]]:
    """A conversation as a chat template takes it; an empty box may come as None."""
    head = [{"role": "system", "content": system}] if system and system.strip() else []
    return head + [{"role": m["role"], "content": text_of(m)} for m in messages]


def text_of(message: dict[str, Any]) -> str:
    """A message's text; Gradio hands back a list of parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") if isinstance(part, dict) else part for part in content)


def token_view(old: Reply, new: Reply) -> str:
    """Both replies, each token coloured by its projection: orange along, blue against."""
    largest = max((abs(value) for _, value in (*old.tokens, *new.tokens)), default=0.0) or 1.0
    sides = []
    for name, reply in (("Before", old), ("After", new)):
        spans = "".join(
            f'<span style="background:{colour(value / largest)}" title="{value:+.2f}">'
            f"{html.escape(piece)}</span>"
            for piece, value in reply.tokens
        )
        sides.append(f'<h4>{name}</h4><div class="tokens">{spans}</div>')
    return "".join(sides)


def colour(share: float) -> str:
    """From -1 (blue) to 1 (orange); transparent at 0, so that it reads in light and dark."""
    red, green, blue = (234, 88, 12) if share > 0 else (37, 99, 235)
    return f"rgba({red},{green},{blue},{min(abs(share), 1.0) * 0.6:.2f})"


def changes(config: dict[str, Any]) -> str:
    """The table of deltas."""
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(row[k]))}</td>" for k in ("name", "base", "edited", "random")
        )
        + "</tr>"
        for row in config["metrics"]
    )
    return (
        "<table><thead><tr><th></th><th>base</th><th>edited</th><th>random direction</th></tr>"
        f"</thead><tbody>{rows}</tbody></table><p>{html.escape(config['note_on_safety'])}</p>"
        f"<p>Direction read at layer {int(config['layer'])}, position "
        f"{int(config['position'])}.</p>"
    )


def as_link(*values: Any) -> str:
    """The settings as a query for this page's address."""
    return "?" + urlencode(dict(zip(SETTINGS, values, strict=True)))


def from_link(
    strength: float,
    temperature: float,
    top_p: float,
    seed: float,
    max_new_tokens: float,
    system: str | None,
    request: gr.Request,
) -> list[Any]:
    """The settings of the address, where it has any that are numbers where numbers are due."""
    asked = dict(request.query_params)
    found: list[Any] = []
    values = (strength, temperature, top_p, seed, max_new_tokens, system or "")
    for name, value in zip(SETTINGS, values, strict=True):
        given: Any = asked.get(name, value)
        if name != "system":
            try:
                given = float(given)
            except ValueError:
                given = value
        found.append(given)
    return found


def main() -> None:
    """Run the page for the `space.json` beside this file."""
    config = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
    build(config).queue(default_concurrency_limit=8).launch(css=CSS, show_error=True)


if __name__ == "__main__":
    main()
