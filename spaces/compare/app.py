"""Before and after, side by side: one base in memory, its delta switched on and off.

Reads `space.json` beside it. Nothing that is said here is logged or kept.
"""

from __future__ import annotations

try:  # only on ZeroGPU hardware, and there before torch
    from spaces import GPU
except ImportError:
    GPU = None

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import gradio as gr
import torch
from pair import CannotReplyError, Pair, Sampling
from room import DoesNotFitError
from view import CSS, as_markdown, changes, token_view

HERE = Path(__file__).resolve().parent
LOWEST = {"strength": 0.0, "temperature": 0.0, "top_p": 0.05, "seed": 0, "max_new_tokens": 1}
HIGHEST = {
    "strength": 1.5,
    "temperature": 2.0,
    "top_p": 1.0,
    "seed": 2**31 - 1,
    "max_new_tokens": 1024,
}
SETTINGS = (*LOWEST, "system")
USERS = 8
PACE_S = 0.08
THEME = gr.themes.Default(
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],  # nothing is fetched from elsewhere
    font_mono=["ui-monospace", "monospace"],
).set(
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
# The link is in the box for whoever's browser does not allow the clipboard.
COPY = "(link) => navigator.clipboard?.writeText(link).catch(() => undefined)"
# Gradio gives both conversations the same name; a screen reader must tell them apart.
NAMES = """() => {
  for (const [id, name] of [["before", "Before (base)"], ["after", "After (edited)"]])
    document.querySelector(`#${id} [role=log]`)?.setAttribute("aria-label", name);
}"""
Messages = list[dict[str, Any]]
State = TypeVar("State")


def build(config: dict[str, Any], *, folder: Path = HERE) -> gr.Blocks:
    """The page for one configuration; loads the model. Says so where it cannot be loaded."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        pair = Pair(config, device=device, folder=str(folder))
    except DoesNotFitError as error:
        return notice(config["title"], str(error))
    except OSError as error:
        return notice(
            config["title"],
            f"The model could not be read: {str(error).splitlines()[0]} If its repository is "
            "private or gated, this Space needs a secret HF_TOKEN that may read it.",
        )
    except ValueError as error:
        return notice(
            config["title"], f"The model could not be loaded: {str(error).strip().splitlines()[0]}"
        )
    return compare(config, pair, folder)


def compare(config: dict[str, Any], pair: Pair, folder: Path) -> gr.Blocks:
    """The page itself."""

    def answer(
        message: str,
        before: Messages,
        after: Messages,
        strength: float,
        temperature: float,
        top_p: float,
        seed: float | None,
        max_new_tokens: float,
        system: str | None,  # an empty box may hold either
    ) -> Iterator[tuple[Messages, Messages, str, str]]:
        """Stream both replies to `message`."""
        if not message.strip():
            yield before, after, "", token_view((), (), behaviour=config["behaviour"])
            return
        asked = {"role": "user", "content": message}
        before, after = [*before, asked], [*after, asked]
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            seed=int(seed or 0),
            max_new_tokens=int(max_new_tokens),
        )
        both = turns(before, system), turns(after, system)
        try:
            for old, new in paced(pair.replies(*both, strength=strength, sampling=sampling)):
                yield (
                    [*before, {"role": "assistant", "content": old.text}],
                    [*after, {"role": "assistant", "content": new.text}],
                    "",
                    token_view(old.tokens, new.tokens, behaviour=config["behaviour"]),
                )
        except CannotReplyError as error:
            raise gr.Error(str(error)) from error

    def again(
        before: Messages, after: Messages, *settings: Any
    ) -> Iterator[tuple[Messages, Messages, str, str]]:
        """Ask the last question once more."""
        asked = [number for number, turn in enumerate(before) if turn["role"] == "user"]
        if not asked:
            raise gr.Error("There is no question to ask again.")
        last = asked[-1]
        yield from answer(text_of(before[last]), before[:last], after[:last], *settings)

    page: gr.Blocks
    with gr.Blocks(title=config["title"], analytics_enabled=False) as page:
        gr.Markdown(f"# {as_markdown(config['title'])}")
        gr.Markdown(
            "The same model before and after its direction for "
            f"**{as_markdown(config['behaviour'])}** was removed. "
            f"{as_markdown(config['verdict'])}",
            elem_classes="about",
        )
        with gr.Row(equal_height=True):
            left, right = (
                gr.Chatbot(
                    label=label,
                    elem_id=name,
                    buttons=["copy", "copy_all"],
                    placeholder=placeholder,
                    min_width=320,
                    layout="bubble",
                )
                for name, label, placeholder in (
                    ("before", "Before (base)", "The base answers here."),
                    ("after", "After (edited)", "The edited model answers here."),
                )
            )
        box = gr.Textbox(
            label="Message to both",
            placeholder="Ask both the same",
            elem_id="message",
            max_length=20_000,
        )
        with gr.Row():
            send = gr.Button("Send", variant="primary", elem_id="send", min_width=60)
            stop = gr.Button("Stop", elem_id="stop", interactive=False, min_width=60)
            retry = gr.Button("Retry", elem_id="retry", min_width=60)
            clear = gr.Button("Clear", elem_id="clear", min_width=60)
        gr.Examples(config["examples"], inputs=box, label="Examples")
        strength = gr.Slider(
            LOWEST["strength"],
            HIGHEST["strength"] if pair.adjustable else 1.0,
            value=1.0,
            step=0.05 if pair.adjustable else 1.0,
            label="Strength of the edit",
            info="0 is the base, 1 the published edit",
            elem_id="strength",
        )
        with gr.Accordion("Settings", open=False, elem_id="settings") as folded:
            with gr.Row():
                temperature = numbers("temperature", 0.0, 0.05, "Temperature", "0 is greedy")
                top_p = numbers("top_p", 1.0, 0.05, "Top p", "smallest head of the distribution")
                length = numbers("max_new_tokens", 128, 1, "Longest reply", "tokens")
                seed = gr.Number(
                    value=0,
                    precision=0,
                    minimum=LOWEST["seed"],
                    maximum=HIGHEST["seed"],
                    label="Seed",
                    info="the same seed, the same reply",
                )
            system = gr.Textbox(value="", label="System prompt", lines=2, elem_id="system")
            link = gr.Textbox(label="These settings as a link", interactive=True, elem_id="link")
            share = gr.Button("Copy link", elem_id="share")
        with gr.Accordion("Token by token", open=True):
            empty = token_view((), (), behaviour=config["behaviour"])
            view = gr.HTML(elem_id="tokens", value=empty)
        with gr.Accordion("What changed", open=False, elem_id="what-changed"):
            gr.HTML(changes(config, folder), elem_id="changes")

        settings = [strength, temperature, top_p, seed, length, system]
        outputs = [left, right, box, view]
        buttons = [send, stop, retry, clear]
        private: Any = {"api_visibility": "private", "show_progress": "hidden"}
        # While one reply is on its way nothing else can be asked in the same conversation.
        busy: Any = {"fn": lambda: switched(running=True), "outputs": buttons, "queue": False}
        idle: Any = {"fn": lambda: switched(running=False), "outputs": buttons, "queue": False}
        streaming: Any = {
            "outputs": outputs,
            "concurrency_limit": USERS,
            "concurrency_id": "model",
            "show_progress": "hidden",
        }
        asked = gr.on([box.submit, send.click], **busy, **private)
        said = asked.then(
            on_gpu(answer), [box, left, right, *settings], api_name="chat", **streaming
        )
        said.then(**idle, **private)
        asked_again = retry.click(**busy, **private)
        said_again = asked_again.then(
            on_gpu(again), [left, right, *settings], api_visibility="private", **streaming
        )
        said_again.then(**idle, **private)
        stop.click(**idle, **private, cancels=[said, said_again])
        gr.on(
            [clear.click, left.clear, right.clear],
            lambda: ([], [], "", empty),
            outputs=outputs,
            **private,
        )
        share.click(as_link, settings, link, **private).then(None, link, js=COPY, **private)
        page.load(from_link, settings, [*settings, folded], **private)
        page.load(None, js=NAMES, **private)
    return page


def paced(states: Iterator[State]) -> Iterator[State]:
    """The newest state a few times a second, and the last: browsers fall behind every token."""
    shown, waiting = -math.inf, False
    for state in states:
        waiting = time.monotonic() - shown < PACE_S
        if not waiting:
            yield state
            shown = time.monotonic()
    if waiting:
        yield state


def on_gpu(function: Any) -> Any:
    """On ZeroGPU hardware a GPU is lent for the time of one call."""
    return function if GPU is None else GPU(duration=120)(function)


def notice(title: str, text: str) -> gr.Blocks:
    """A page that says why there is nothing to chat with."""
    page: gr.Blocks
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {as_markdown(title)}")
        gr.Textbox(text, label="Not running", interactive=False, lines=3, elem_id="notice")
    return page


def numbers(name: str, value: float, step: float, label: str, info: str) -> gr.Slider:
    """A slider for one setting."""
    return gr.Slider(
        LOWEST[name],
        HIGHEST[name],
        value=value,
        step=step,
        label=label,
        info=info,
        elem_id=name,
        min_width=240,
    )


def switched(*, running: bool) -> list[Any]:
    """Send, Stop, Retry, Clear: only Stop while a reply is on its way."""
    return [gr.update(interactive=name == "stop" if running else name != "stop") for name in _ORDER]


_ORDER = ("send", "stop", "retry", "clear")


def turns(messages: Messages, system: str | None) -> list[dict[str, str]]:
    """A conversation as a chat template takes it."""
    head = [{"role": "system", "content": system}] if system and system.strip() else []
    return head + [{"role": m["role"], "content": text_of(m)} for m in messages]


def text_of(message: dict[str, Any]) -> str:
    """A message's text; Gradio hands back a list of parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") if isinstance(part, dict) else part for part in content)


def as_link(request: gr.Request, *values: Any) -> str:
    """The address of this page with these settings."""
    space = os.environ.get("SPACE_ID")  # on the Hub the page is shown inside another
    origin = request.headers.get("origin", "")
    page = f"https://huggingface.co/spaces/{space}" if space else f"{origin}/"
    given = zip(SETTINGS, values, strict=True)
    return page + "?" + urlencode({name: value for name, value in given if value is not None})


def from_link(request: gr.Request, *values: Any) -> list[Any]:
    """The settings of the address, where they are what a setting can be; unfolded if it has any."""
    asked = dict(request.query_params)
    *numbers_now, system = values
    found: list[Any] = [
        _number(name, asked.get(name), value)
        for name, value in zip(LOWEST, numbers_now, strict=True)
    ]
    unfolded = gr.update(open=bool(asked.keys() & set(SETTINGS)))
    return [*found, asked.get("system", system or ""), unfolded]


def _number(name: str, asked: str | None, value: float) -> float:
    """What was asked for, if it is a number that the setting can be."""
    try:
        number = float(asked or "nan")
    except ValueError:
        number = math.nan
    return number if LOWEST[name] <= number <= HIGHEST[name] else value


def main() -> None:
    """Run the page for the `space.json` beside this file."""
    config = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
    page = build(config).queue(default_concurrency_limit=USERS)
    page.launch(theme=THEME, css=CSS, show_error=True, run_history=False)


if __name__ == "__main__":
    main()
