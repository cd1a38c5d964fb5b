"""The numeric check: how much of the residual stream still lies along a direction.

Whatever the trace said, this is the last word: it measures. A state that is not finite measures
nothing, so it is refused and never counts as clean.
"""

from __future__ import annotations

from typing import Any

import torch

from abl_hub.errors import EditError
from abl_hub.model.layers import decoder_layers, stream_states


@torch.inference_mode()
def residual(model: Any, tokens: torch.Tensor, directions: torch.Tensor) -> float:
    """max |r · h| / |h| over all states of the residual stream of one forward pass.

    Args:
        tokens: (rows, length), int64.
        directions: (k, width), unit rows.

    Raises:
        EditError: no state of the stream was seen, or one holds NaN or infinity.
    """
    with stream_states(model, decoder_layers(model)[1]) as states:
        model(input_ids=tokens, use_cache=False)
    if not states:
        raise EditError(
            "The residual stream cannot be measured",
            why=f"{type(model).__name__} did not call its decoder layers",
        )
    return max(_along(state.double(), directions) for state in states)


def check_removed(model: Any, tokens: torch.Tensor, directions: torch.Tensor) -> float:
    """`residual`, where nothing but rounding may be left of it.

    Raises:
        EditError: more than `residual_limit` of the stream lies along the directions, or a state
            is not finite.
    """
    left = residual(model, tokens, directions)
    limit = residual_limit(model.dtype)
    if left > limit:
        raise EditError(
            "The edited model fails its own check",
            why=f"{left:.1e} of the stream still lies along the direction (limit {limit:.0e})",
            next_step="This architecture cannot be edited exactly; report it",
        )
    return left


def residual_limit(dtype: torch.dtype) -> float:
    """What rounding alone may leave: 1e-5 in float32, 2e-3 in 16 bits."""
    return 1e-5 if dtype in (torch.float32, torch.float64) else 2e-3


def _along(hidden: torch.Tensor, directions: torch.Tensor) -> float:
    if not hidden.isfinite().all():
        # Comparisons with NaN are false, so it would pass every limit.
        raise EditError(
            "The residual stream cannot be measured",
            why="a state holds NaN or infinity",
            next_step="Load the model in a wider dtype, or check its weights",
        )
    along = (hidden @ directions.to(hidden).T).abs().amax(-1)
    return float((along / hidden.norm(dim=-1).clamp_min(1e-30)).max())
