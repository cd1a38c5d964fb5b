"""The numeric check: how much of the residual stream still lies along a direction.

Whatever the trace said, this is the last word: it measures.
"""

from __future__ import annotations

from typing import Any

import torch

from abl_hub.model.layers import decoder_layers, stream_states


@torch.inference_mode()
def residual(model: Any, tokens: torch.Tensor, directions: torch.Tensor) -> float:
    """max |r · h| / |h| over all states of the residual stream of one forward pass.

    Args:
        tokens: (rows, length), int64.
        directions: (k, width), unit rows.
    """
    with stream_states(model, decoder_layers(model)[1]) as states:
        model(input_ids=tokens, use_cache=False)
    worst = 0.0
    for state in states:
        hidden = state.double()
        along = (hidden @ directions.to(hidden).T).abs().amax(-1)
        worst = max(worst, float((along / hidden.norm(dim=-1).clamp_min(1e-30)).max()))
    return worst


def residual_limit(dtype: torch.dtype) -> float:
    """What rounding alone may leave: 1e-5 in float32, 2e-3 in 16 bits."""
    return 1e-5 if dtype in (torch.float32, torch.float64) else 2e-3
