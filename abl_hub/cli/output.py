"""The one place that prints: results to stdout, everything else to stderr.

Knows the three formats (human, json, quiet) and how progress looks on a terminal and in a log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from abl_hub.cli.interrupt import raise_if_heard
from abl_hub.progress import Advance

Format = Literal["human", "json", "quiet"]


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command's results, notes and progress go.

    Args:
        format: "human" prints tables and sentences, "json" one JSON document, "quiet" only the
            essential value of each result, one a line.
        verbose: also say what is usually left out.
    """

    format: Format = "human"
    verbose: bool = False
    _shown: list[str] = field(default_factory=list)

    def line(self, text: str = "") -> None:
        """A sentence for people."""
        if self.format == "human":
            click.echo(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for people, columns as wide as they need."""
        if self.format != "human":
            return
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        for row in (header, ["-" * width for width in widths], *rows):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            click.echo("  ".join(cells).rstrip())

    def result(self, value: str, document: Mapping[str, Any]) -> None:
        """The command's result: `value` where quiet, the whole `document` as JSON."""
        if self.format == "json":
            click.echo(json.dumps(document, indent=2, sort_keys=True))
        elif self.format == "quiet":
            click.echo(value)

    def note(self, text: str) -> None:
        """A hint or warning, to stderr."""
        if self.format != "quiet":
            click.echo(text, err=True)

    def ask(self, prompt: str) -> None:
        """Where somebody is to type, to stderr."""
        if self.format != "quiet":
            click.echo(prompt, nl=False, err=True)

    def detail(self, text: str) -> None:
        """Something that only --verbose tells, to stderr."""
        if self.verbose:
            click.echo(text, err=True)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Progress: a bar on a terminal, one line a stage elsewhere, nothing when quiet."""
        raise_if_heard()
        if self.format == "quiet":
            yield lambda _done: None
        elif not sys.stderr.isatty():
            if self._shown[-1:] != [name]:
                self._shown.append(name)
                click.echo(f"{name} ...", err=True)
            yield lambda _done: None
        else:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            with Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                # Bound now: bars stay where they are while a library's own stderr is turned away.
                console=Console(file=sys.stderr),
            ) as bars:
                task = bars.add_task(name, total=total)
                yield lambda done: bars.advance(task, done)
