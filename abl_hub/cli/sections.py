"""Options under headings in `--help`: which of them begin a section, not what they do."""

from __future__ import annotations

import click

_STARTS = {
    "push_": "Publishing",
    "namespace": "Publishing",
    "job": "On Hugging Face Jobs",
    "revision": "Model and prompts",
    "behaviour": "Direction",
    "strength": "Edit",
    "dtype": "Measuring",
    "test_sets": "Measuring",
    "device": "Machine and Hub",
    "trust_remote_code": "Machine and Hub",
}
"""First option → title; a section that goes on keeps its title."""


class Sectioned(click.Command):
    """A command with so many options that one list of them would not be read."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each title, in the order of the options; --help comes first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        title = "Options"
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is None or isinstance(parameter, click.Argument):
                continue
            title = _STARTS.get(parameter.name or "", title)
            sections.setdefault("Options" if "--help" in parameter.opts else title, []).append(row)
        for name, rows in sections.items():
            with formatter.section(name):
                formatter.write_dl(rows)
