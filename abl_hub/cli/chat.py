"""`abl-hub chat`: base and edited model one after the other, in the terminal."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from abl_hub.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterable

HELP = "/strength N, /system TEXT, /reset, /quit"


@click.command()
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--base", help="Hub id or folder of the base.  [default: as in the record]")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="A reply's."
)
@click.pass_obj
def chat(output: Output, /, out: Path, base: str | None, max_new_tokens: int) -> None:
    """Chat with base and edited model of OUT, a question a line.

    \b
    abl-hub chat out
    /strength 0.5      how much of the edit (0 is the base)
    /system TEXT       a system prompt; without TEXT, none
    /reset             forget what was said
    /quit              leave
    """
    from abl_hub.report.record import load_record
    from abl_hub.stages.memory import refuse_if_too_large
    from abl_hub.stages.space import write_space

    record = load_record(out)
    refuse_if_too_large(base or record.source.repo or record.source.name)
    with tempfile.TemporaryDirectory(prefix="abl-hub-chat-") as scratch:
        folder = write_space(out, Path(scratch) / "space", record, {}, base=base)
        module = _pair_module(folder)
        config = json.loads((folder / "space.json").read_text(encoding="utf-8"))
        pair = module.Pair(config, device="cpu", folder=str(folder))
        output.note(HELP)
        _talk(pair, module.Sampling(max_new_tokens=max_new_tokens), sys.stdin)


def _pair_module(folder: Path) -> Any:
    """The Space's own engine: the two programs must not differ in what they say."""
    sys.path.insert(0, str(folder))
    return importlib.import_module("pair")


def _talk(pair: Any, sampling: Any, lines: Iterable[str]) -> None:
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
            strength = _number(rest, strength)
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
            old, new = deque(replies, maxlen=1).pop()
            click.echo(f"base    {old.text}\nedited  {new.text}")
            before.append({"role": "assistant", "content": old.text})
            after.append({"role": "assistant", "content": new.text})


def _number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        click.echo(f"{text!r} is no number.")
        return otherwise
