"""KL is a number, and the right one, where a model rules words out."""

from __future__ import annotations

import pytest
import torch

from abl_hub.model.divergence import apart, bounded, divergence, largest


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min])
def test_words_that_are_ruled_out_have_no_share(masked: float) -> None:
    before, after = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).unbind()
    expected = torch.nn.functional.kl_div(
        after.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    gone = torch.full((3, 4), masked)
    one, other = (torch.cat([side, gone], dim=1).log_softmax(-1) for side in (before, after))
    assert torch.allclose(divergence(one, other), expected, atol=1e-6)
    halved = bounded(one).half()
    assert bool(torch.isfinite(halved).all())
    assert torch.allclose(divergence(halved.float(), other), expected, atol=1e-2)


def test_gradients_pass_words_that_are_ruled_out() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]])
    shift = torch.zeros(3, requires_grad=True)
    divergence(logits.log_softmax(-1), (logits + shift).log_softmax(-1)).sum().backward()
    assert bool(torch.isfinite(shift.grad).all())


def test_logits_that_rule_words_out_are_compared_in_the_others() -> None:
    one = torch.tensor([[1.0, -2.0, float("-inf")]])
    assert apart(one, one.clone()) == 0.0
    assert apart(one, one + 0.5) == pytest.approx(0.5)
    assert largest(one) == 2.0
    masked = torch.tensor([[1.0, -2.0, torch.finfo(torch.float32).min]])
    assert largest(masked) == 2.0
    assert not apart(one, torch.full_like(one, float("nan"))) <= 1e9
