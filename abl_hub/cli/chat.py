"""`abl-hub chat`: base and edited model one after the other, in the terminal."""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from abl_hub.cli.asked import runtime_of
from abl_hub.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HELP = "/strength N, /system TEXT, /reset, /quit"


@click.command()
@click.argument("target", metavar="OUT|USER/REPO")
@click.option(
    "--base", metavar="SOURCE", help="Hub id or folder of the base.  [default: as in the record]"
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=128,
    show_default=True,
    help="Most tokens of a reply.",
)
@click.option(
    "--device", metavar="NAME", default="cpu", show_default=True, help="A torch device, as cuda."
)
@click.pass_obj
def chat(
    output: Output, /, target: str, base: str | None, max_new_tokens: int, device: str
) -> None:
    """Chat with base and edited model, a question a line.

    Of an output folder, or of a delta or Space on the Hub.

    \b
    abl-hub chat out
    abl-hub chat user/model-abliterated-delta
    /strength 0.5      how much of the edit (0 is the base)
    /system TEXT       system prompt
    /reset             forget what was said
    /quit              leave
    """
    from abl_hub.errors import SourceError
    from abl_hub.stages.compare import compare_folder
    from abl_hub.stages.runtime import check_device

    check_device(device)
    with tempfile.TemporaryDirectory(prefix="abl-hub-chat-") as scratch:
        folder = compare_folder(target, Path(scratch), runtime_of(output, {}), base=base)
        engine = _engine(folder)
        config = json.loads((folder / "space.json").read_text(encoding="utf-8"))
        try:
            pair = engine.Pair(config, device=device, folder=str(folder))
        except engine.DoesNotFitError as error:
            raise SourceError(str(error)) from error
        except OSError as error:
            raise SourceError(
                "The base cannot be read",
                why=str(error).strip().splitlines()[0],
                next_step="If it is private or gated, set HF_TOKEN; if it lies elsewhere, --base",
            ) from error
        except ValueError as error:
            raise SourceError(
                "The base cannot be loaded",
                why=str(error).strip().splitlines()[0],
                next_step="Give a whole chat model with its tokenizer; `chat` runs no code of a "
                "repository",
            ) from error
        output.note(f"Ask something; there are also {HELP}")
        try:
            _talk(engine, pair, max_new_tokens, _lines(output))
        except KeyboardInterrupt:
            output.note("")  # Ctrl-C is a way to leave


def _lines(output: Output) -> Iterator[str]:
    """What is typed or piped in, line by line; somebody who types sees where."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # No tokenizer takes what is left of bytes that are no text.
        sys.stdin.reconfigure(errors="replace")
    prompting = sys.stdin.isatty()
    while True:
        if prompting:
            output.ask("> ")
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _engine(folder: Path) -> Any:
    """The Space's own engine: the two programs must not differ in what they say."""
    sys.path.insert(0, str(folder))
    return importlib.import_module("pair")


def _talk(engine: Any, pair: Any, max_new_tokens: int, lines: Iterable[str]) -> None:
    sampling = engine.Sampling(max_new_tokens=max_new_tokens)
    strength, system = 1.0, ""
    before: list[dict[str, str]] = []
    after: list[dict[str, str]] = []
    for line in lines:
        words = line.strip()
        command, _, rest = words.partition(" ")
        if not words:
            continue
        if command == "/quit":
            return
        if command == "/reset":
            before, after = [], []
            click.echo("Forgotten.")
        elif command == "/system":
            system = rest.strip()
            click.echo(f"System prompt: {system or 'none'}")
        elif command == "/strength":
            strength = _strength(rest, strength)
            click.echo(f"Strength: {strength:g}")
        elif command.startswith("/"):
            click.echo(f"No command {command}. There are {HELP}")
        else:
            asked = {"role": "user", "content": words}
            before, after = [*before, asked], [*after, asked]
            head = [{"role": "system", "content": system}] if system else []
            replies = pair.replies(
                [*head, *before], [*head, *after], strength=strength, sampling=sampling
            )
            try:
                old, new = deque(replies, maxlen=1).pop()
            except engine.CannotReplyError as error:
                click.echo(str(error))
                before, after = before[:-1], after[:-1]
                continue
            click.echo(f"base    {old.text}\nedited  {new.text}")
            before.append({"role": "assistant", "content": old.text})
            after.append({"role": "assistant", "content": new.text})


def _strength(text: str, otherwise: float) -> float:
    """Of the edit; `otherwise` where `text` is none that a reply could be given with."""
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if math.isfinite(strength) and strength >= 0:
        return strength
    click.echo(f"{text!r} is no strength.")
    return otherwise
