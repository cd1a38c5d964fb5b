"""The command group: global options, the commands, and how errors leave the program.

Exit codes: 0 done, 1 a refusal with its reason (or a bug, said to be one), 2 wrong usage, 130
interrupted. A traceback is printed only with --debug.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from abl_hub import __version__
from abl_hub.cli.output import Format, Output
from abl_hub.errors import AblHubError, OutputError

_TOGETHER = ("convert", "extract")
_COMMANDS = {
    "convert": "abl_hub.cli.convert",
    "extract": "abl_hub.cli.stages",
    "apply": "abl_hub.cli.stages",
    "evaluate": "abl_hub.cli.stages",
    "card": "abl_hub.cli.stages",
    "push": "abl_hub.cli.publish",
    "space": "abl_hub.cli.space",
    "chat": "abl_hub.cli.chat",
    "analyse": "abl_hub.cli.science",
    "report": "abl_hub.cli.science",
    "probe": "abl_hub.cli.science",
    "trace": "abl_hub.cli.inspect",
    "demo": "abl_hub.cli.demo",
}
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


class Commands(click.Group):
    """Loads a command's module when it is asked for, and turns errors into one line."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[name]), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _disk_told():
                return super().invoke(ctx)
        except AblHubError as error:
            if ctx.meta.get("debug"):
                traceback.print_exc()
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Interrupted. The same command goes on where it stopped.", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # The reader of our output has gone; nothing is wrong with us.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except Exception as error:  # noqa: BLE001 - the last line of defence must catch all
            if ctx.meta.get("debug"):
                traceback.print_exc()
                ctx.exit(1)
            with tempfile.NamedTemporaryFile(
                "w", prefix="abl-hub-", suffix=".log", delete=False, encoding="utf-8"
            ) as log:
                traceback.print_exc(file=log)
            click.echo(
                f"Error: a bug in abl-hub ({type(error).__name__}). "
                f"Please report it with {log.name}, or run again with --debug.",
                err=True,
            )
            ctx.exit(1)


@click.group(
    cls=Commands,
    context_settings={
        "auto_envvar_prefix": "ABL_HUB",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="abl-hub")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["human", "json", "quiet"]),
    default="human",
    show_default=True,
    help="How results are printed: as text, as one JSON document, or only the value that counts.",
)
@click.option("--verbose", is_flag=True, help="Say more, on stderr.")
@click.option("--debug", is_flag=True, help="Print Python's traceback with an error.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with a table of options for each command, as in [convert] seed = 1.",
)
@click.pass_context
def abl_hub(
    ctx: click.Context, format_: Format, verbose: bool, debug: bool, config: Path | None
) -> None:
    """Find the one direction in a chat model's residual stream that mediates a behaviour, remove
    it exactly, measure what that did, and publish the result.

    \b
    abl-hub demo                       the whole job on a model trained on the spot, no network
    abl-hub convert org/model          merged weights, PEFT delta and cards
    abl-hub convert org/model --push   the same, published (private unless --public)
    """
    if os.environ.get("RANK", "0") != "0":
        # Of several processes one prints and writes; the others help it to read, or have nothing
        # to do.
        if ctx.invoked_subcommand not in _TOGETHER:
            ctx.exit(0)
        format_ = "quiet"
    ctx.obj = Output(format=format_, verbose=verbose)
    ctx.meta["debug"] = debug
    _quiet_libraries(verbose)
    if config is not None:
        ctx.default_map = _defaults(ctx, config)


@contextmanager
def _disk_told() -> Iterator[None]:
    """A disk that is full, or not ours to write to, is no bug: it may be met at any file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise OutputError(
            f"{error.filename or 'A file'} cannot be read or written",
            why=error.strerror or "",
            next_step="Make room or give permission, and run the same command again",
        ) from error


def _quiet_libraries(verbose: bool) -> None:
    """Progress bars of the libraries below would garble ours."""
    if not verbose:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TQDM_DISABLE", "1")
        # At every import, on every CPU without its extra kernels.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _defaults(ctx: click.Context, path: Path) -> dict[str, Any]:
    """Options from a TOML file; a key that no command knows is an error."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from error
    defaults = {}
    for name, options in content.items():
        command = ctx.command.get_command(ctx, name) if isinstance(ctx.command, Commands) else None
        if command is None or not isinstance(options, dict):
            raise click.UsageError(f"{path}: no command {name!r}")
        defaults[name] = dict(
            _default(command, key, value, f"{path}: {name}") for key, value in options.items()
        )
    return defaults


def _default(command: click.Command, key: str, value: Any, where: str) -> tuple[str, Any]:
    """Click's own name and value of an option that is written as on the command line."""
    name, flag = key.replace("-", "_"), "--" + key.replace("_", "-")
    for option in command.params:
        if option.name is None or (flag not in option.opts and name != option.name):
            continue
        if isinstance(option, click.Option) and option.is_flag:
            if not isinstance(value, bool):
                raise click.UsageError(f"{where}: {key} is true or false, not {value!r}")
            inverse = option.flag_value is False and name != option.name  # `no-untie`
            return option.name, value is not inverse
        several = isinstance(option, click.Option) and option.multiple
        return option.name, [value] if several and isinstance(value, str) else value
    raise click.UsageError(f"{where} has no option {key!r}")
