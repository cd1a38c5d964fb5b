"""Tracing: every parameter that writes to the residual stream, found from the model's own graph.

A few tokens are run through the model and the autograd graph is walked backwards from every state
of the residual stream. No weight is needed and no module name is known: what a parameter is called
does not say what it does, and what the graph says holds for every architecture.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from abl_hub.errors import UnsupportedModelError
from abl_hub.model.carriers import Place, block_outputs, find_carriers
from abl_hub.model.graph import RULES, Carry, Visit
from abl_hub.model.layers import decoder_layers, stream_states
from abl_hub.model.meta import weightless_copy
from abl_hub.model.writers import Between, Trace, Writer

_TOKENS = 5


def trace_writers(model: Any) -> Trace:
    """Find all writers of `model`, loaded or on the meta device.

    Raises:
        UnsupportedModelError: the stream cannot be followed exactly; the reason says where.
    """
    try:
        return _trace(model, with_values=True)
    except _ValuesNeededError:
        return _trace(weightless_copy(model), with_values=False)


def _trace(model: Any, *, with_values: bool) -> Trace:
    name, layers = decoder_layers(model)
    names = {id(weight): key for key, weight in model.named_parameters()}
    states, places, watching = _run(model)
    width = int(states[0].shape[-1])
    found = _walk(states, names, watching)
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no parameter that writes to its residual stream"
        )
    _refuse_unrun(model, found)
    head = model.get_output_embeddings()
    tied = None if head is None else getattr(head, "weight", None)
    prefix = f"{name}."
    writers = tuple(
        Writer(
            parameter=key,
            axis=axis,
            shape=tuple(weight.shape),
            between=between,
            layer=int(key[len(prefix) :].partition(".")[0]) if key.startswith(prefix) else None,
            tied_to_head=weight is tied,
        )
        for key, weight in model.named_parameters()
        if key in found
        for axis, between in [found[key]]
    )
    return Trace(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        layers=name,
        layer_count=len(layers),
        width=width,
        writers=writers,
        carriers=find_carriers(places, states, len(layers), names, with_values=with_values),
    )


def _run(model: Any) -> tuple[list[torch.Tensor], list[Place], _Watching]:
    """Run a few tokens with a graph: the stream's states, the places of the blocks' outputs in the
    graph, and what was seen on the way."""
    weight = model.get_input_embeddings().weight
    tokens = torch.full((1, _TOKENS), 3, device=weight.device)
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False}
    if "attention_mask" in accepted:
        options["attention_mask"] = torch.ones_like(tokens)
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with (
            torch.enable_grad(),
            stream_states(model, decoder_layers(model)[1]) as states,
            block_outputs(decoder_layers(model)[1]) as places,
            _Watching() as watching,
            watching.modules(model),
        ):
            model(input_ids=tokens, **options)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if weight.is_meta and isinstance(error, NotImplementedError):
            raise _ValuesNeededError from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be run on the {weight.device.type} device to be traced",
            why=first,
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not states or states[-1].grad_fn is None:
        raise UnsupportedModelError(f"{type(model).__name__} leaves no graph to trace")
    return states, places, watching


def _walk(
    states: Sequence[torch.Tensor], names: dict[int, str], watching: _Watching
) -> dict[str, tuple[int, tuple[Between, ...]]]:
    """Parameter → (axis, what lies between), for all that the states depend on linearly."""
    found: dict[str, tuple[int, tuple[Between, ...]]] = {}
    seen: set[tuple[Any, int, Carry]] = set()
    stack: list[tuple[Any, int, Carry]] = [
        (state.grad_fn, state.output_nr, Carry(axis=-1)) for state in states
    ]
    while stack:
        node, output, carry = stack.pop()
        if node is None or (node, output, carry) in seen:
            continue
        seen.add((node, output, carry))
        if hasattr(node, "variable"):
            _note(found, names.get(id(node.variable)), node.variable, carry)
            continue
        visit = Visit(
            node=node,
            output=output,
            carry=carry,
            names=names,
            strides=watching.strides,
            makers=watching.makers,
        )
        rule = RULES.get(visit.operation)
        if rule is None:
            raise visit.refuse("an operation without a rule lies on the way to the stream")
        stack += _next(visit, rule(visit))
    return found


def _next(visit: Visit, steps: Iterable[tuple[int, Carry]]) -> list[tuple[Any, int, Carry]]:
    inputs = visit.inputs
    found = []
    for index, carry in steps:
        if index >= len(inputs) or inputs[index][0] is None:
            continue
        shape = visit.shape_in(index)
        if len(shape) < -carry.axis or shape[carry.axis] != visit.width:
            raise visit.refuse("an operand has other features than the stream")
        found.append((*inputs[index], carry))
    return found


def _note(
    found: dict[str, tuple[int, tuple[Between, ...]]], name: str | None, weight: Any, carry: Carry
) -> None:
    if name is None:
        return  # a leaf that is no parameter: a constant
    place = (carry.axis % weight.dim(), carry.between)
    if found.setdefault(name, place) != place:
        raise UnsupportedModelError(
            "The residual stream cannot be traced",
            why=f"{name} writes to it under two directions",
            next_step="This architecture cannot be edited exactly",
        )


def _refuse_unrun(model: Any, found: Collection[str]) -> None:
    """Refuse a parameter that stands where writers stand, one index apart, but was not reached.

    A few tokens do not run everything: an expert that no token was sent to, cross-attention
    without an image. What did not run leaves no graph, and would write to the stream unedited.
    """
    writing = {(_place(name), model.get_parameter(name).shape) for name in found}
    for name, weight in model.named_parameters():
        if name not in found and (_place(name), weight.shape) in writing:
            raise UnsupportedModelError(
                "The residual stream cannot be traced",
                why=f"{name} did not run on a few tokens of text, and others like it are writers",
                next_step="This architecture cannot be edited exactly",
            )


def _place(name: str) -> str:
    """A parameter's name without its indices in lists."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


class _ValuesNeededError(Exception):
    """The model's code asks for values, which the meta device does not have."""


class _Watching(TorchFunctionMode):
    """Answers questions about values on the meta device, and remembers what autograd does not keep.

    The questions are of the kind "is the mask all ones?", whose answer here is yes.

    Attributes:
        strides: where an in-place write into a view went in its base.
        makers: node of the graph → name of the innermost module that was running.
    """

    def __init__(self) -> None:
        super().__init__()
        self.strides: dict[Any, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.makers: dict[Any, str] = {}
        self._running: list[str] = []

    @contextmanager
    def modules(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs."""

        def begin(name: str) -> Callable[..., None]:
            return lambda _module, _inputs: self._running.append(name)

        def end(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._running.pop()

        with ExitStack() as stack:
            for name, module in model.named_modules():
                stack.callback(module.register_forward_pre_hook(begin(name)).remove)
                stack.callback(module.register_forward_hook(end).remove)
            yield

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if (
            tensor is not None
            and tensor.is_meta
            and function
            in (
                torch.Tensor.__bool__,
                torch.Tensor.item,
            )
        ):
            return True
        geometry = None
        if (
            tensor is not None
            and getattr(function, "__name__", "").endswith("_")
            and tensor._base is not None
        ):
            geometry = (tensor._base.stride(), tensor.stride())
        result = function(*args, **(kwargs or {}))
        if tensor is not None and geometry is not None and tensor._base is not None:
            written = tensor._base.grad_fn
            if written is not None and written.name().endswith("CopySlices"):
                self.strides[written] = geometry
        self._note_maker(result)
        return result

    def _note_maker(self, result: Any) -> None:
        """All nodes behind `result` that nobody has made yet; leaves are made by no operation."""
        made = result if isinstance(result, tuple | list) else [result]
        stack = [one.grad_fn for one in made if isinstance(one, torch.Tensor)]
        while stack and self._running:
            node = stack.pop()
            if node is not None and node not in self.makers and not hasattr(node, "variable"):
                self.makers[node] = self._running[-1]
                stack += [child for child, _ in node.next_functions]
