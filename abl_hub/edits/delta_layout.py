"""How PEFT can hold an edit: which of its mechanisms carries each writer, and under which keys.

PEFT itself is asked where it stores them (`peft_skeleton`). Knows no tensor's values.

| writer | mechanism |
|---|---|
| weight of a Linear, Conv1D or Embedding | LoRA on the module (`target_modules`) |
| fused experts, other 2-D and 3-D parameters | LoRA on the parameter (`target_parameters`) |
| bias of a module that has a LoRA | `lora_bias`, or stored whole (`bias: lora_only`) |
| bias of a norm | the norm stored whole (`modules_to_save`) |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from abl_hub.edits.peft_skeleton import PREFIX, LowRank, held_by_peft, lora_config, low_rank
from abl_hub.errors import EditError
from abl_hub.model.writers import Writer

Profile = Literal["portable", "complete"]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A writer that the delta does not edit, and why."""

    parameter: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A small tensor that the adapter stores whole: the bias of a module, or part of a norm."""

    parameter: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All that the adapter file will hold, and the configuration under which PEFT reads it.

    Args:
        config: fields of `LoraConfig`, without base model and revision.
        covered: names of the writers that it edits.
        left_out: the writers that it does not.
        notes: what the user must know about this form.
    """

    profile: Profile
    config: dict[str, Any]
    covered: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    low_rank: tuple[LowRank, ...] = ()
    whole: tuple[Whole, ...] = ()
    notes: tuple[str, ...] = ()


def looks_portable(model: PreTrainedModel, writers: Sequence[Writer]) -> bool:
    """Whether every writer is of a kind that the portable layout holds; PEFT is not asked yet."""
    return not any(isinstance(way, LeftOut) for way in _portable_plan(model, writers).values())


def portable(model: PreTrainedModel, writers: Sequence[Writer], rank: int) -> Layout:
    """The layout that vLLM, SGLang, llama.cpp and transformers read like PEFT does.

    LoRA on the linear layers alone, named by suffix and present on every layer that has the
    suffix (with zeros where unedited), one rank, one alpha, no biases.
    """

    def arrange(plan: _Plan) -> Layout:
        covered, left_out = _sides(plan)
        names = sorted({_leaf(owner(parameter)) for parameter in covered})
        return Layout(
            profile="portable",
            config=lora_config(rank) | {"target_modules": names},
            covered=covered,
            left_out=left_out,
        )

    return _settled(model, _portable_plan(model, writers), arrange)


def complete(model: PreTrainedModel, writers: Sequence[Writer], rank: int) -> Layout:
    """The layout that covers all that PEFT can: embeddings, biases, fused experts, norms."""
    modules = dict(model.named_modules())
    redirected = _redirected(model, [owner(w.parameter) for w in writers])
    tied_writers = {w.parameter for w in writers if w.tied_to_head}

    def arrange(plan: _Plan) -> Layout:
        covered, left_out = _sides(plan)
        biases = [p for p in covered if plan[p] == "bias"]
        parameters = {p for p in covered if plan[p] == "parameter"}
        parameters |= {f"{owner(p)}.weight" for p in biases if owner(p) in redirected}
        targets = {owner(p) for p in covered if plan[p] in ("module", "bias")}
        targets -= {owner(p) for p in parameters}
        saved = sorted({owner(p) for p in covered if plan[p] == "saved"})
        tied = bool(tied_writers.intersection(covered))
        config = lora_config(rank)
        config |= _targets(model, targets, parameters, regular=tied and not redirected)
        if any(isinstance(modules[name], Conv1D) for name in targets):
            config["fan_in_fan_out"] = True
        if saved:
            config["modules_to_save"] = saved
        whole = [
            Whole(parameter=f"{name}.{own}", key=f"{PREFIX}{name}.{own}")
            for name in saved
            for own, _ in modules[name].named_parameters()
        ]
        notes = [_TIED] if tied else []
        if biases and not parameters and all(_has_linear_bias(modules[n]) for n in targets):
            config["lora_bias"] = True
        elif biases:
            config["bias"] = "lora_only"
            whole += [Whole(parameter=p, key=f"{PREFIX}{owner(p)}.base_layer.bias") for p in biases]
            notes.append(_WHOLE_BIASES)
        return Layout(
            profile="complete",
            config=config,
            whole=tuple(whole),
            covered=covered,
            left_out=left_out,
            notes=tuple(notes),
        )

    plan = {w.parameter: _mechanism(w, modules, redirected) for w in writers}
    return _settled(model, plan, arrange)


def owner(parameter: str) -> str:
    """Name of the module that holds `parameter`."""
    return parameter.rpartition(".")[0]


_Mechanism = Literal["module", "parameter", "bias", "saved"]
_Plan = dict[str, "_Mechanism | LeftOut"]

_WHOLE_BIASES = (
    "Edited biases are stored whole, because PEFT cannot add to a bias next to an embedding or "
    "fused experts: disabling or rescaling the adapter leaves them edited"
)
_TIED = (
    "The embedding is tied to the output head; the adapter edits the embedding and leaves the "
    "head alone, which merging it into the weights (merge_and_unload) cannot: use the merged form"
)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _portable_plan(model: PreTrainedModel, writers: Sequence[Writer]) -> _Plan:
    modules = dict(model.named_modules())
    redirected = _redirected(model, [owner(w.parameter) for w in writers])
    plan: _Plan = {}
    for writer in writers:
        reason = _not_portable(writer, modules, redirected)
        name = writer.parameter
        plan[name] = "module" if reason is None else LeftOut(parameter=name, reason=reason)
    return plan


def _sides(plan: _Plan) -> tuple[tuple[str, ...], tuple[LeftOut, ...]]:
    """What the plan covers, and what it leaves out."""
    return (
        tuple(parameter for parameter, way in plan.items() if not isinstance(way, LeftOut)),
        tuple(way for way in plan.values() if isinstance(way, LeftOut)),
    )


def _settled(model: PreTrainedModel, plan: _Plan, arrange: Callable[[_Plan], Layout]) -> Layout:
    """The layout of what PEFT accepts of `plan`, with the places that PEFT made for it."""
    layout = arrange(plan)
    made = held_by_peft(model, layout.config)
    if isinstance(made, str):
        plan = plan | _refused(model, plan)
        layout = arrange(plan)
        made = held_by_peft(model, layout.config)
    if isinstance(made, str):
        refused = (LeftOut(parameter=parameter, reason=made) for parameter in layout.covered)
        return replace(layout, covered=(), left_out=(*layout.left_out, *refused), whole=())
    placed = replace(layout, low_rank=low_rank(model, made, layout.config))
    held = {one.parameter for one in placed.low_rank} | {one.parameter for one in placed.whole}
    held |= {f"{owner(one.parameter)}.bias" for one in placed.low_rank if one.bias}
    dropped = set(layout.covered) - held
    if dropped:
        # PEFT passes over a target that it does not find, without a word.
        raise EditError(
            f"PEFT makes no place for {min(dropped)}",
            why="it did not match the name that it was given",
            next_step="Use the merged form, and report the architecture",
        )
    return placed


def _not_portable(
    writer: Writer, modules: dict[str, nn.Module], redirected: set[str]
) -> str | None:
    """Why the portable profile cannot hold `writer`; None where it can."""
    name = owner(writer.parameter)
    module = modules[name]
    if isinstance(module, nn.Embedding):
        return "embeddings are read by PEFT alone"
    if len(writer.shape) == 1:
        return "biases are read by PEFT alone"
    if len(writer.shape) == 3:
        return "fused experts are read by PEFT alone"
    if not isinstance(module, nn.Linear) or writer.axis != 0:
        return f"{type(module).__name__} is not a linear layer that other engines know"
    if name in redirected:
        return f"PEFT takes {_leaf(name)} for the experts of this architecture"
    if any(
        _leaf(other) == _leaf(name) and not isinstance(found, nn.Linear)
        for other, found in modules.items()
    ):
        return f"{_leaf(name)} also names modules that are not linear"
    return None


def _mechanism(
    writer: Writer, modules: dict[str, nn.Module], redirected: set[str]
) -> _Mechanism | LeftOut:
    """The way in which PEFT can change `writer` exactly."""
    name = owner(writer.parameter)
    module = modules[name]
    if len(writer.shape) == 1:
        if isinstance(module, nn.Linear | Conv1D):
            return "bias"
        if all(own.ndim == 1 for own in module.parameters()):
            return "saved"
        return LeftOut(parameter=writer.parameter, reason="PEFT has no way to change this vector")
    if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        if writer.axis != (0 if isinstance(module, nn.Linear) else 1):
            return LeftOut(parameter=writer.parameter, reason="the stream is the layer's input")
        return "parameter" if name in redirected or _computes_ids(module) else "module"
    if any(True for child in module.children() for _ in child.parameters()):
        return LeftOut(
            parameter=writer.parameter, reason="PEFT cannot wrap a module that holds modules"
        )
    return "parameter"


def _computes_ids(module: nn.Module) -> bool:
    """An embedding that does not look up what it is given (OPT's positions).

    PEFT's LoRA would look up the module's input itself. It does know `embed_scale`.
    """
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is not nn.Embedding.forward
        and not hasattr(module, "embed_scale")
    )


def _redirected(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """The modules that PEFT would take for experts, dropping their LoRA without a word.

    It does so by name (`*.down_proj`) for some two dozen architectures; asked, not listed.
    """
    asked = set(names)
    config = LoraConfig(r=1, target_modules=sorted(asked))
    convert_peft_config_for_transformers(config, model, None)
    return asked - set(config.target_modules or ())


def _refused(model: PreTrainedModel, plan: _Plan) -> dict[str, LeftOut]:
    """The writers that PEFT refuses to put its layers on (as it does in Mamba's mixers).

    Asked once for each kind of place: names that differ by the layer's number are of one kind.
    """
    modules = dict(model.named_modules())
    kinds: dict[tuple[str, str], list[str]] = {}
    for parameter, way in plan.items():
        if way in ("module", "parameter", "bias"):
            kinds.setdefault((re.sub(r"\d+", "#", parameter), str(way)), []).append(parameter)
    refused: dict[str, LeftOut] = {}
    for (_, kind), parameters in kinds.items():
        first = parameters[0]
        targets: dict[str, Any] = (
            {"target_parameters": [first]}
            if kind == "parameter"
            else {"target_modules": re.escape(owner(first))}
        )
        if isinstance(modules[owner(first)], Conv1D):
            targets["fan_in_fan_out"] = True
        made = held_by_peft(model, lora_config(1) | targets)
        if isinstance(made, str):
            refused |= {p: LeftOut(parameter=p, reason=made) for p in parameters}
    return refused


def _has_linear_bias(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) and module.bias is not None


def _targets(
    model: PreTrainedModel, modules: set[str], parameters: set[str], *, regular: bool
) -> dict[str, Any]:
    """Name the targets as briefly as it can be done without matching anything else.

    Args:
        regular: name the modules by a regular expression. PEFT then does not warn that the
            embedding is tied; the note of the layout says what matters about it.
    """
    names = _brief(modules, [name for name, _ in model.named_modules()])
    fields: dict[str, Any] = {"target_modules": names}
    if regular:
        suffixes = [re.escape(name) for name in names if name not in modules]
        whole = [re.escape(name) for name in names if name in modules]
        ends = [rf".+\.({'|'.join(suffixes)})"] if suffixes else []
        fields["target_modules"] = "|".join([*ends, *whole])
    if parameters:
        every = [name for name, _ in model.named_parameters()]
        fields["target_parameters"] = _brief(parameters, every, least=2)
    return fields


def _brief(wanted: set[str], every: Sequence[str], *, least: int = 1) -> list[str]:
    """Suffixes of `least` or two names that match `wanted` alone, or full names."""
    brief = set()
    for name in wanted:
        parts = name.split(".")
        for count in (least, 2, len(parts)):
            suffix = ".".join(parts[-count:])
            if all(n in wanted for n in every if n == suffix or n.endswith(f".{suffix}")):
                brief.add(suffix)
                break
        else:
            brief.add(name)
    return sorted(brief)
