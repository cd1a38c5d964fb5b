"""From options to what the stages take: a recipe, lm-eval's tasks, a runtime; and back to words."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from abl_hub.cli.output import Output

if TYPE_CHECKING:
    from abl_hub.evaluation.tasks import Tasks
    from abl_hub.report.recipe import Recipe
    from abl_hub.stages.runtime import Runtime


def recipe_of(source: str, options: dict[str, Any]) -> Recipe:
    """The recipe that the options of `recipe_options` make."""
    from abl_hub.directions.contrast import SplitSizes
    from abl_hub.hub.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE
    from abl_hub.report.recipe import DEFAULT_METHODS, Recipe

    asked = {name: options.pop(name) for name in ("train", "validation", "test")}
    given = {name: value for name, value in asked.items() if value is not None}
    return Recipe(
        source=source,
        positive=options.pop("positive") or DEFAULT_POSITIVE,
        negative=options.pop("negative") or DEFAULT_NEGATIVE,
        sizes=SplitSizes(**given) if given else None,
        methods=options.pop("methods") or DEFAULT_METHODS,
        markers=options.pop("markers") or None,
        writers=options.pop("writers") or None,
        tasks=tasks_of(options),
        **options,
    )


def tasks_of(options: dict[str, Any]) -> Tasks | None:
    """What the options of `tasks_options` ask lm-eval for; takes them out."""
    names, path, limit, chat_template = (
        options.pop(name, None)
        for name in ("tasks", "tasks_path", "tasks_limit", "tasks_chat_template")
    )
    if names is None:
        if path or limit or chat_template:
            raise click.UsageError("--tasks-path, --tasks-limit and the like need --tasks")
        return None
    from abl_hub.evaluation.tasks import Tasks

    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not found:
        raise click.BadParameter("names no task", param_hint="--tasks")
    return Tasks(names=found, path=path, limit=limit, chat_template=bool(chat_template))


def runtime_of(output: Output, options: dict[str, Any]) -> Runtime:
    """The runtime that the options of `runtime_options` and `hub_options` make; takes them out,
    but for --trust-remote-code, which a recipe holds too.
    """
    from abl_hub.stages.runtime import Runtime

    names = ("device", "rows", "memory", "cache_dir", "token")
    if options.get("device") == "cuda" and "LOCAL_RANK" in os.environ:
        options["device"] = f"cuda:{os.environ['LOCAL_RANK']}"  # a process each, a GPU each
    if options.get("memory") is not None:
        options["memory"] = int(options["memory"] * 1e9)
    return Runtime(
        **{name: options.pop(name) for name in names if name in options},
        trust_remote_code=options.get("trust_remote_code", False),
        endpoint=os.environ.get("HF_ENDPOINT"),
        progress=output,
    )


def command_line(without: Collection[str] = ()) -> str:
    """The command as the user gave it, without a token: it goes into the record.

    Args:
        without: names of options that are left out.
    """
    context = click.get_current_context()
    words = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if name == "token" or name in without or value is None or value == ():
            continue
        # A flag stands for True, if it does not say otherwise (`--no-untie`).
        if isinstance(value, bool) and value is (getattr(parameter, "flag_value", True) is False):
            continue
        source = context.get_parameter_source(name)
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif source is not None and source.name != "DEFAULT":
            flag = max(parameter.opts, key=len)
            if name == "layers":
                value = "-".join(map(str, value))
            values = value if isinstance(value, tuple) else (value,)
            given = [word for one in values for word in (flag, str(one))]
            words += [flag] if isinstance(value, bool) else given
    return shlex.join(["abl-hub", context.info_name or "", *words])
