"""`abl-hub convert`: the whole job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from abl_hub.cli.asked import command_line, recipe_of, runtime_of
from abl_hub.cli.options import (
    hub_options,
    keep_option,
    overwrite_option,
    recipe_options,
    runtime_options,
    tasks_options,
)
from abl_hub.cli.output import Output
from abl_hub.cli.publish import publish_options, target_of
from abl_hub.cli.sections import Sectioned

if TYPE_CHECKING:
    from abl_hub.stages.runtime import Runtime

_HERE = ("job", "job_timeout", "job_package", "out", "cache_dir")
"""Options that mean this machine."""


@click.command(cls=Sectioned)
@click.argument("source")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Output folder.  [default: ./<model>-abliterated, or -induced]",
)
@overwrite_option
@keep_option
@click.option(
    "--dry-run", is_flag=True, help="Say what would be read, written and pushed, and do nothing."
)
@click.option(
    "--push", "push_", is_flag=True, help="Publish the result: privately, unless --public."
)
@click.option(
    "--stream",
    is_flag=True,
    help="With --push: upload each merged shard as it is made and delete it, so that the merged "
    "model is never whole on this disk; the edit is then evaluated as runtime hooks on the base, "
    "which has to be here.",
)
@publish_options
@click.option(
    "--job",
    metavar="FLAVOR",
    help="Run this command on the Hub's machines (Hugging Face Jobs), as in a10g-small; needs "
    "--push, for nothing else is kept of it.",
)
@click.option(
    "--job-timeout",
    metavar="TIME",
    default="2h",
    show_default=True,
    help="With --job: when it is stopped, as in 90m or 2h.",
)
@click.option(
    "--job-package",
    metavar="REQUIREMENT",
    help="With --job: what it installs.  [default: abl-hub, this version]",
)
@recipe_options
@tasks_options
@runtime_options
@hub_options
@click.pass_obj
def convert(
    output: Output,
    /,
    source: str,
    out: Path | None,
    overwrite: bool,
    keep_completions: bool,
    dry_run: bool,
    push_: bool,
    stream: bool,
    job: str | None,
    job_timeout: str,
    job_package: str | None,
    **options: Any,
) -> None:
    """Make merged weights, a PEFT delta and cards from SOURCE, a Hub id or a local folder.

    \b
    abl-hub convert org/model
    abl-hub convert org/model --push
    abl-hub convert org/model --push --stream
    abl-hub convert ./model --positive refused.jsonl --negative answered.jsonl -o out
    """
    from abl_hub.cli.show import show_plan, show_record
    from abl_hub.stages.convert import convert as run
    from abl_hub.stages.crew import gathered
    from abl_hub.stages.early import check_target

    if job is not None:
        if not push_:
            raise click.UsageError("--job needs --push: nothing else is kept of it")
        _refuse_local(source, options)
        options["device"] = "cpu"  # the one that was given is the job's
    command = command_line()
    runtime = runtime_of(output, options)
    target = target_of(options, published=push_)
    if stream and not (push_ and "merged" in target.parts):
        raise click.UsageError("--stream needs --push, and a merged model to push")
    if stream and options["induce"]:
        raise click.UsageError("--stream does not go with --induce, which changes one bias")
    recipe = recipe_of(source, options)
    folder = out or _beside(source, "induced" if recipe.induce else "abliterated")
    if folder.name in ("", ".."):
        folder = folder.resolve()  # what stands there will be replaced as a whole
    if dry_run:
        from abl_hub.stages.plan import plan

        show_plan(
            output, plan(recipe, folder, runtime, target=target if push_ else None, stream=stream)
        )
        return
    if job is not None:
        _run_elsewhere(output, job, job_timeout, job_package, runtime)
        return
    with gathered(recipe, runtime) as mine:
        if mine is None:
            return
        if push_:
            check_target(recipe, target, mine)
        record = run(
            recipe,
            folder,
            mine,
            command=command,
            overwrite=overwrite,
            keep_completions=keep_completions,
            stream=stream,
        )
    if not push_:
        show_record(output, record, folder)
        return
    from abl_hub.report.record import load_record
    from abl_hub.stages.push import push

    pushed = push(folder, runtime, target, stream=stream)
    show_record(output, load_record(folder), folder, pushed)


def _beside(source: str, way: str) -> Path:
    """Where the output goes if nobody says: here, but never into the model's own folder."""
    model = Path(source).expanduser()
    if not model.is_dir():
        return Path(f"{model.name}-{way}")
    model = model.resolve()
    inside = Path.cwd().is_relative_to(model)
    return (model.parent if inside else Path()) / f"{model.name}-{way}"


def _refuse_local(source: str, options: dict[str, Any]) -> None:
    """What lies on this machine, where a job cannot read it."""
    from abl_hub.errors import SourceError
    from abl_hub.hub.prompt_spec import local_files

    files = [Path(one).expanduser() for one in (source, options["tasks_path"]) if one]
    specs = [options["positive"], options["negative"]]
    specs += [one.partition(":")[2] for one in options["test_sets"]]
    files += [file for spec in specs if spec for file in local_files(spec)]
    for file in files:
        if file.exists():
            raise SourceError(
                f"{file} is on this machine, where a job cannot read it",
                next_step="Push it to the Hub and give its id",
            )


def _run_elsewhere(
    output: Output, flavor: str, timeout: str, package: str | None, runtime: Runtime
) -> None:
    """The same command as a job; what it prints is printed here."""
    from abl_hub import __version__
    from abl_hub.hub.jobs import follow, submit

    words = shlex.split(command_line(without=_HERE))[1:]
    job = submit(
        words,
        flavor=flavor,
        timeout=timeout,
        package=package or f"abl-hub=={__version__}",
        token=runtime.token,
        endpoint=runtime.endpoint,
    )
    output.note(f"Running {job.url}")
    for line in follow(job, token=runtime.token, endpoint=runtime.endpoint):
        output.line(line)
    output.result(job.url, {"job": job.id, "url": job.url})
