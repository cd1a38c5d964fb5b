"""Which linear map carries a constant behind a layer, in every form in which it can be written.

Of the carriers that the tracer has found: those that PEFT can give a bias, and among them first
those for which a checkpoint can hold it, stored or grown by a switch of the configuration. Knows
the architecture; neither what is added nor where weights lie.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from abl_hub.edits.peft_skeleton import held_by_peft, lora_config, quiet_about_biases
from abl_hub.errors import UnsupportedModelError
from abl_hub.model.meta import meta_model
from abl_hub.model.writers import Carrier, Trace


@dataclass(frozen=True, kw_only=True)
class GrownBias:
    """A field of the configuration under which the architecture has the bias.

    Args:
        field: set to true; in the text model's configuration, where it is nested.
        parameters: name → shape of every bias that appears with it.
    """

    field: str
    parameters: dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The linear layer whose bias a constant is.

    Args:
        module: its name.
        shape: of its weight.
        has_bias: whether the architecture gives it a bias.
        grown: else the switch that does, if there is one.
        scale: what the module's output is multiplied by before it is in the stream.
    """

    module: str
    shape: tuple[int, ...]
    has_bias: bool
    grown: GrownBias | None
    scale: float

    @property
    def bias(self) -> str:
        """Name of the parameter that holds the constant."""
        return f"{self.module}.bias"


def find_place(model: PreTrainedModel, trace: Trace, layer: int) -> Place:
    """Where a constant behind `layer` is best held.

    Args:
        model: the architecture; the meta device is enough.

    Raises:
        UnsupportedModelError: nothing there adds a constant to the stream as it is.
    """
    carriers = [carrier for carrier in _usable(model, trace) if carrier.layer == layer]
    if not carriers:
        raise _nothing(f"behind layer {layer}", trace)
    places = [
        Place(
            module=carrier.module,
            shape=tuple(model.get_parameter(carrier.weight).shape),
            has_bias=carrier.bias is not None,
            grown=None if carrier.bias else grown_bias(model, carrier),
            scale=carrier.scale,
        )
        for carrier in carriers
    ]
    return min(places, key=lambda place: (not place.has_bias, place.grown is None))


def carrying_layers(model: PreTrainedModel, trace: Trace) -> tuple[int, ...]:
    """The layers behind which a constant can be added, in order.

    Raises:
        UnsupportedModelError: there is none.
    """
    layers = tuple(sorted({carrier.layer for carrier in _usable(model, trace)}))
    if not layers:
        raise _nothing("behind any layer", trace)
    return layers


def grown_bias(model: PreTrainedModel, carrier: Carrier) -> GrownBias | None:
    """The configuration's switch that gives `carrier` a bias, found by turning each of them.

    Of several, the one that brings the fewest parameters; None where there is none.
    """
    bias = f"{carrier.module}.bias"
    before = set(dict(model.named_parameters()))
    found = []
    for field, changed in _switched(model):
        after = {name: tuple(p.shape) for name, p in changed.named_parameters()}
        new = {name: shape for name, shape in after.items() if name not in before}
        if bias in new and before <= after.keys() and all(n.endswith(".bias") for n in new):
            found.append(GrownBias(field=field, parameters=new))
    return min(found, key=lambda one: len(one.parameters), default=None)


def bias_lora(module: str, linear: nn.Linear | Conv1D) -> dict[str, Any]:
    """Fields of a `LoraConfig` under which `module` has a bias and nothing else changes."""
    return lora_config(1) | {
        "target_modules": [module],
        "lora_bias": True,
        "fan_in_fan_out": isinstance(linear, Conv1D),
    }


def _usable(model: PreTrainedModel, trace: Trace) -> list[Carrier]:
    """The carriers that are layers of their own and that PEFT can give a bias."""
    taken: dict[str, bool] = {}
    usable = []
    for carrier in trace.carriers:
        module = model.get_submodule(carrier.module)
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        if carrier.bias not in (None, f"{carrier.module}.bias"):
            continue
        # PEFT goes by names, which layers of one kind share but for their indices.
        kind = re.sub(r"\.\d+(?=\.)", ".*", carrier.module)
        if kind not in taken:
            taken[kind] = _peft_takes(model, carrier.module, module)
        if taken[kind]:
            usable.append(carrier)
    return usable


def _peft_takes(model: PreTrainedModel, name: str, module: nn.Linear | Conv1D) -> bool:
    """Whether PEFT puts a LoRA with a bias on the module itself, and on nothing else."""
    with quiet_about_biases():
        made = held_by_peft(model, bias_lora(name, module))
    if isinstance(made, str):
        return False
    changed = {key: one for key, one in made.named_modules() if isinstance(one, LoraLayer)}
    [(key, layer), *others] = changed.items()
    return key.endswith(f".{name}") and not isinstance(layer, ParamWrapper) and not others


def _nothing(where: str, trace: Trace) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Nothing can be added {where} of this architecture",
        why="PEFT gives no bias to what writes there"
        if trace.carriers
        else "what it writes passes a norm, a gate or a router, or is read elsewhere too",
        next_step="Remove a direction instead, or add it while the model runs",
    )


def _switched(model: PreTrainedModel) -> Iterator[tuple[str, PreTrainedModel]]:
    """The architecture with each switch for biases that is off turned on."""
    for field, value in sorted(model.config.get_text_config().to_dict().items()):
        if value is False and "bias" in field:
            config = copy.deepcopy(model.config)
            setattr(config.get_text_config(), field, True)
            try:
                yield field, meta_model(config)
            except UnsupportedModelError:
                continue
