"""The delta form of an `Addition`: a LoRA of zeros whose B has the bias (PEFT's `lora_bias`).

So any linear layer can carry a constant, whether or not the architecture gives it a bias.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from abl_hub.edits.addition import Addition
from abl_hub.edits.carrying import bias_lora
from abl_hub.edits.delta import CONFIG, WEIGHTS, Delta, check_delta, describe_file
from abl_hub.edits.peft_skeleton import PREFIX, quiet_about_biases
from abl_hub.edits.staging import check_free, staging

_NOTE = (
    "The constant is the bias of a LoRA (`lora_bias`), which PEFT reads and other engines do not"
)
_NOT_MERGED = (
    "The layer has no bias of its own, so that PEFT cannot merge the constant into its weights"
)


def write_added_delta(
    edit: Addition,
    out: Path,
    *,
    model: PreTrainedModel,
    base: str,
    revision: str | None = None,
    invert: bool = False,
) -> Delta:
    """Write `edit` as a PEFT adapter into the folder `out`, which appears when it is whole.

    Args:
        model: gives the module; the meta device is enough.
        invert: on the edited weights, the adapter gives the unedited model.

    Raises:
        EditError: PEFT would not load the adapter as it was written.
        OutputError: `out` is taken.
    """
    check_free(out)
    place = edit.place
    module = model.get_submodule(place.module)
    assert isinstance(module, nn.Linear | Conv1D)  # what `find_place` chooses of
    inner = place.shape[0 if isinstance(module, Conv1D) else 1]
    key = f"{PREFIX}{place.module}"
    constant = -edit.constant if invert else edit.constant
    tensors = {
        f"{key}.lora_A.weight": torch.zeros(1, inner),
        f"{key}.lora_B.weight": torch.zeros(len(edit.vector), 1),
        f"{key}.lora_B.bias": constant.to(torch.float32).contiguous(),
    }
    config = bias_lora(place.module, module) | {"base_model_name_or_path": base}
    if revision is not None:
        config["revision"] = revision
    with staging(out) as stage:
        (stage.folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (stage.folder / CONFIG).write_text(text, encoding="utf-8")
        with quiet_about_biases():
            check_delta(stage.folder, model)
        files = tuple(describe_file(stage.folder / name) for name in (CONFIG, WEIGHTS))
        stage.publish()
    return Delta(
        folder=out,
        profile="complete",
        files=files,
        covered=(place.bias,),
        left_out=(),
        notes=(_NOTE,) if place.has_bias else (_NOTE, _NOT_MERGED),
    )
