"""`push` and `space`: what leaves the machine, and the Space on it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from abl_hub.cli.asked import runtime_of
from abl_hub.cli.options import hub_options, trust_option
from abl_hub.cli.output import Output
from abl_hub.cli.sections import Sectioned

if TYPE_CHECKING:
    from abl_hub.stages.target import Target

_OPTIONS = (
    click.option(
        "--namespace",
        metavar="NAME",
        help="User or organisation to publish under.  [default: yours]",
    ),
    click.option(
        "--merged-repo",
        metavar="NAME",
        help="Name of the merged model's repository.  [default: <model>-abliterated, or -induced]",
    ),
    click.option(
        "--delta-repo",
        metavar="NAME",
        help="Name of the delta's repository.  [default: <model>-abliterated-delta]",
    ),
    click.option(
        "--direction-repo",
        metavar="NAME",
        help="Name of the direction's repository.  [default: <model>-abliterated-direction]",
    ),
    click.option(
        "--space-repo",
        metavar="NAME",
        help="Name of the Space's repository.  [default: <model>-abliterated-compare]",
    ),
    click.option(
        "--only",
        multiple=True,
        type=click.Choice(["merged", "delta", "direction", "space"]),
        help="Publish only this; may be repeated. A direction becomes a data set.  "
        "[default: merged, delta and space]",
    ),
    click.option("--public", is_flag=True, help="Publish publicly.  [default: privately]"),
    click.option(
        "--gated",
        type=click.Choice(["auto", "manual"]),
        help="Make readers request access: granted at once, or by you.  [default: not gated]",
    ),
    click.option(
        "--gate-prompt",
        metavar="TEXT",
        help="With --gated: what readers are shown when they ask.  [default: about the edit]",
    ),
    click.option(
        "--collection",
        metavar="TITLE",
        help="Tie base, merged, delta and Space together in the collection of that title.",
    ),
    click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing."),
    click.option(
        "--yes", is_flag=True, help="Publish publicly though the verdict is not SUPPORTED."
    ),
)


def publish_options(function: Any) -> Any:
    """Options of everything that can publish."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def target_of(options: dict[str, Any], *, published: bool = True) -> Target:
    """Where to publish; takes the options of `publish_options` out.

    Args:
        published: False where nothing is, so that none of them may be given.
    """
    from abl_hub.stages.target import Target

    for field in fields(Target):
        source = click.get_current_context().get_parameter_source(field.name)
        if not published and source is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{field.name.replace('_', '-')} needs --push")
    target = Target(**{field.name: options.pop(field.name) for field in fields(Target)})
    if target.gate_prompt is not None and target.gated is None:
        raise click.UsageError("--gate-prompt needs --gated auto or --gated manual")
    return target


@click.command(cls=Sectioned)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be pushed, and do nothing.")
@click.option(
    "--stream",
    is_flag=True,
    help="Keep the base off this disk: shards of it that the Hub cache does not hold are fetched "
    "one by one, edited, uploaded and deleted, wherever OUT has no merged model. The delta is "
    "then loaded back without the base.",
)
@publish_options
@trust_option
@hub_options
@click.pass_obj
def push(output: Output, /, out: Path, stream: bool, dry_run: bool, **options: Any) -> None:
    """Publish OUT: merged model, delta and Space, privately unless --public.

    \b
    abl-hub push out
    abl-hub push out --only delta --public
    abl-hub push out --stream
    """
    from abl_hub.cli.show import show_plan, show_pushed
    from abl_hub.stages.plan import plan_push
    from abl_hub.stages.push import push as run

    runtime = runtime_of(output, options)
    target = target_of(options)
    if dry_run:
        show_plan(output, plan_push(out, runtime, target, stream=stream))
        return
    show_pushed(output, run(out, runtime, target, stream=stream))
