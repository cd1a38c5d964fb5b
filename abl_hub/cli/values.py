"""Kinds of option values that Click has not: numbers that are finite, text that says something."""

from __future__ import annotations

import math
from typing import Any

import click

SEED = click.IntRange(-(2**63), 2**63 - 1)
"""What every generator of random numbers takes."""


class FiniteRange(click.FloatRange):
    """A number that is neither NaN nor infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class Text(click.types.StringParamType):
    """Text that is not blank, as it was given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("it is empty", param, ctx)
        return str(value)
