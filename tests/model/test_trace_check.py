"""The numeric check itself: that it can fail, and that what is not finite never passes."""

from __future__ import annotations

import pytest
import torch

from abl_hub.edits.edit import remove
from abl_hub.edits.hooks import applied
from abl_hub.errors import EditError
from abl_hub.model.check import check_removed, residual, residual_limit
from abl_hub.model.gains import gains
from abl_hub.model.trace import trace_writers
from tests.families import WIDTH, build, tokens


def _unit() -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    )


def test_an_unedited_model_is_refused_and_an_edited_one_is_not() -> None:
    model = build("llama")
    ids, unit = tokens(model), _unit()
    with pytest.raises(EditError, match="still lies along the direction"):
        check_removed(model, ids, unit)
    edit = remove(unit[0], trace_writers(model).writers)
    with applied(edit, model, gains(model, edit.writers)):
        assert check_removed(model, ids, unit) <= residual_limit(torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_what_is_not_finite_never_passes(value: float, everywhere: bool) -> None:
    model = build("llama")
    weight = model.get_input_embeddings().weight if everywhere else model.model.layers[2].mlp
    with torch.no_grad():
        if everywhere:
            weight.fill_(value)
        else:
            weight.down_proj.weight[0, 0] = value
    with pytest.raises(EditError, match="NaN or infinity"):
        residual(model, tokens(model), _unit())


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-3), (torch.float16, 2e-3)],
)
def test_the_limit_is_what_rounding_leaves(dtype: torch.dtype, limit: float) -> None:
    assert residual_limit(dtype) == limit
