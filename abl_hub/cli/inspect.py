"""`abl-hub trace`: what writes to a model's residual stream, without loading a weight."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from abl_hub.cli.asked import runtime_of
from abl_hub.cli.options import hub_options, trust_option
from abl_hub.cli.output import Output


@click.command()
@click.argument("source")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of SOURCE.")
@trust_option
@hub_options
@click.pass_obj
def trace(
    output: Output, /, source: str, revision: str | None, trust_remote_code: bool, **options: Any
) -> None:
    """List every parameter of SOURCE that writes to its residual stream.

    \b
    abl-hub trace org/model
    """
    from abl_hub.hub.source import plan_source
    from abl_hub.model.meta import meta_model
    from abl_hub.model.trace import trace_writers

    runtime = runtime_of(output, options)
    plan = plan_source(
        source,
        revision=revision,
        token=runtime.token,
        endpoint=runtime.endpoint,
        cache_dir=runtime.cache_dir,
        trust_remote_code=trust_remote_code,
    )
    found = trace_writers(meta_model(plan.config_folder, trust_remote_code=trust_remote_code))
    output.line(
        f"{found.architecture}: {found.layer_count} layers, width {found.width}, "
        f"{len(found.writers)} writers"
    )
    kinds = Counter(
        (_starred(writer.parameter, writer.layer), writer.axis, writer.shape, writer.rescaled)
        for writer in found.writers
    )
    output.table(
        ["writer", "count", "axis", "shape", "behind a norm"],
        [
            [name, str(count), str(axis), "x".join(map(str, shape)), "yes" if rescaled else ""]
            for (name, axis, shape, rescaled), count in kinds.items()
        ],
    )
    output.result(
        "\n".join(writer.parameter for writer in found.writers),
        {
            "architecture": found.architecture,
            "layers": found.layer_count,
            "width": found.width,
            "writers": [
                {"parameter": w.parameter, "axis": w.axis, "shape": list(w.shape)}
                for w in found.writers
            ],
        },
    )


def _starred(parameter: str, layer: int | None) -> str:
    return parameter if layer is None else parameter.replace(f".{layer}.", ".*.", 1)
