"""How far two models' logits are from each other, also where a model rules words out.

Some models mask entries of their vocabulary: logits of −inf, or the least number of their format.
Such a word has no share in the sum, though 0 · −inf is no number.
"""

from __future__ import annotations

import torch

# exp(−10⁴) is 0 in every number format, and half precision still holds −10⁴.
_RULED_OUT = -1e4


def bounded(log_probs: torch.Tensor) -> torch.Tensor:
    """`log_probs` with a finite number for words that are ruled out; float16 holds the result."""
    return log_probs.clamp_min(_RULED_OUT)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of logits; what both rule out (−inf) is equal."""
    return float((one - other).where(one != other, 0.0).abs().max())


def largest(logits: torch.Tensor) -> float:
    """Largest absolute value of logits that are not ruled out."""
    return float(logits.abs().where(logits > _RULED_OUT, 0.0).max())


def divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL(before ‖ after) of log-probabilities (…, vocabulary) → (…), nats, in their dtype."""
    one, other = bounded(before), bounded(after)
    return (one.exp() * (one - other)).sum(-1)
