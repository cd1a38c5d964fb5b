"""Rules for walking an autograd graph backwards while carrying one axis: the residual stream's.

From a state of the stream, each operation says which of its operands carry the stream's features,
along which axis of theirs, and what they are multiplied by on the way. One rule an operation;
an operation without a rule is a refusal. Knows tensors' shapes, never their values, so it works on
the meta device; knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from abl_hub.errors import UnsupportedModelError
from abl_hub.model.writers import Between, Centre, Gain

Strides = Mapping[Any, tuple[tuple[int, ...], tuple[int, ...]]]
"""Node of an in-place write into a view → strides of (base, view), which autograd does not keep."""


@dataclass(frozen=True, kw_only=True)
class Carry:
    """What is carried into an operand: the feature axis (negative) and what lies between."""

    axis: int
    between: tuple[Between, ...] = ()

    def at(self, axis: int) -> Carry:
        return replace(self, axis=axis)

    def through(self, *steps: Between) -> Carry:
        return replace(self, between=self.between + steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """One node of the graph, met with a carried axis."""

    node: Any
    output: int
    carry: Carry
    names: Mapping[int, str]
    """id of a parameter → its name."""
    strides: Strides
    makers: Mapping[Any, str]
    """Node → name of the module that computed it, where it is known."""

    @property
    def operation(self) -> str:
        return operation(self.node)

    @property
    def inputs(self) -> list[tuple[Any, int]]:
        return list(self.node.next_functions)

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.node, self.output)

    @property
    def width(self) -> int:
        return self.shape[self.carry.axis]

    def shape_in(self, index: int) -> tuple[int, ...]:
        return shape_of(*self.inputs[index])

    def carries(self, index: int) -> bool:
        """Whether the operand has the feature axis, rather than being broadcast over it."""
        if self.inputs[index][0] is None:
            return False
        shape = self.shape_in(index)
        return len(shape) >= -self.carry.axis and shape[self.carry.axis] == self.width

    def refuse(self, why: str) -> UnsupportedModelError:
        maker = self.makers.get(self.node)
        where = f"in {maker}: " if maker else ""
        return UnsupportedModelError(
            "The residual stream cannot be traced",
            why=f"{why} ({where}{self.operation}, shape {'x'.join(map(str, self.shape))})",
            next_step="This architecture cannot be edited exactly",
        )


Step = tuple[int, Carry]
"""An operand's index, and what is carried into it."""
Rule = Callable[[Visit], Iterable[Step]]


def operation(node: Any) -> str:
    """What a node of the graph computed: "Add", "Mm" …"""
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]


def shape_of(node: Any, output: int) -> tuple[int, ...]:
    """Shape of a node's output; of a leaf, its variable's."""
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    return tuple(node._input_metadata[output].shape)


def signed(index: int, rank: int) -> int:
    """Autograd saves negative dimensions as unsigned 64-bit numbers; the true one, from 0."""
    return (index - 2**64 if index >= 2**63 else index) % rank


def first(visit: Visit) -> Iterable[Step]:
    """The first operand, unchanged."""
    return [(0, visit.carry)]


def across(visit: Visit) -> Iterable[Step]:
    """The first operand, moved about or summed up along other axes than the stream's."""
    _refuse_across(visit)
    return first(visit)


def every_across(visit: Visit) -> Iterable[Step]:
    """All operands, some of which are put in at places along other axes than the stream's."""
    _refuse_across(visit)
    return every(visit)


def _refuse_across(visit: Visit) -> None:
    rank = len(visit.shape_in(0) if visit.operation == "Index" else visit.shape)
    if visit.operation in ("Index", "IndexPut"):
        indices = enumerate(visit.node._saved_indices)
        moved = {axis for axis, index in indices if index is not None}
    else:
        saved = getattr(visit.node, "_saved_dims", None)
        dims = [visit.node._saved_dim] if saved is None else saved
        moved = {signed(dim, rank) for dim in dims}
    if rank + visit.carry.axis in moved:
        raise visit.refuse("features change places")


def every(visit: Visit) -> Iterable[Step]:
    """All operands, unchanged."""
    return [(i, visit.carry) for i in range(len(visit.inputs))]


def product(visit: Visit) -> Iterable[Step]:
    """A per-token scale passes; a parameter of the stream's width is a gain; else refuse."""
    carrying = [i for i in range(len(visit.inputs)) if visit.carries(i)]
    if len(carrying) == 1:
        _refuse_constant_gain(visit, carrying[0])
        return [(carrying[0], visit.carry)]
    if len(carrying) == 2:
        gains = {i: name for i in carrying if (name := _lone_parameter(visit, visit.inputs[i][0]))}
        if len(gains) == 1:
            ((gain, name),) = gains.items()
            other = carrying[1 - carrying.index(gain)]
            return [(other, visit.carry.through(Gain(parameter=name)))]
    raise visit.refuse("a product of two activations writes to the stream")


def quotient(visit: Visit) -> Iterable[Step]:
    """The numerator, if the denominator is a per-token scale."""
    if visit.carries(1) and visit.width > 1:
        raise visit.refuse("the stream is divided feature by feature")
    _refuse_constant_gain(visit, 0)
    return [(0, visit.carry)]


def _refuse_constant_gain(visit: Visit, index: int) -> None:
    """A constant vector leaves no node in the graph; autograd has saved it for the operand."""
    saved = getattr(visit.node, "_saved_other" if index == 0 else "_saved_self", None)
    axis = visit.carry.axis
    if (
        saved is not None
        and hasattr(saved, "dim")
        and visit.inputs[1 - index][0] is None
        and saved.dim() >= -axis
        and saved.shape[axis] == visit.width > 1
    ):
        raise visit.refuse("a constant gain for each feature lies on the way")


_ON_THE_WAY_FROM_A_GAIN = ("Add", "ToCopy", "View", "Reshape", "Unsqueeze", "Squeeze", "Expand")
"""So that it is w, or w plus a number. Anything else (a sigmoid) may be a gain, but which?"""


def _lone_parameter(visit: Visit, node: Any) -> str | None:
    """Name of the one parameter that an operand depends on, where it is one gain a feature."""
    stack, leaves = [node], []
    while stack:
        met = stack.pop()
        if hasattr(met, "variable"):
            leaves.append(met.variable)
            continue
        if operation(met) not in _ON_THE_WAY_FROM_A_GAIN:
            return None
        stack += [child for child, _ in met.next_functions if child is not None]
        if len(leaves) + len(stack) > 8:
            return None
    if len(leaves) != 1 or leaves[0].numel() != visit.width:
        return None
    return visit.names.get(id(leaves[0]))


def norm(visit: Visit) -> Iterable[Step]:
    """LayerNorm: gain and centring, and its bias writes. RMSNorm: the gain."""
    if visit.carry.axis != -1 or visit.shape_in(0)[-1] != visit.width:
        raise visit.refuse("a norm over another axis than the stream's")
    carry = visit.carry
    if len(visit.inputs) > 1 and visit.inputs[1][0] is not None:
        carry = carry.through(Gain(parameter=visit.names[id(visit.inputs[1][0].variable)]))
    steps: list[Step] = []
    if visit.operation == "NativeLayerNorm":
        carry = carry.through(Centre())
        steps.append((2, visit.carry))
    return [(0, carry), *steps]


def view(visit: Visit) -> Iterable[Step]:
    """A reshape that leaves the feature axis whole."""
    old, new, at = visit.shape_in(0), visit.shape, len(visit.shape) + visit.carry.axis
    behind = prod(new[at + 1 :])
    for index, size in enumerate(old):
        if size == new[at] and prod(old[index + 1 :]) == behind:
            return [(0, visit.carry.at(index - len(old)))]
    raise visit.refuse(f"a reshape from {'x'.join(map(str, old))} breaks the feature axis")


def as_strided(visit: Visit) -> Iterable[Step]:
    """Expanded or permuted views, where strides say which axis it was."""
    stride, shape = visit.node._saved_stride, visit.shape_in(0)
    found = [
        i
        for i in range(len(shape))
        if prod(shape[i + 1 :]) == stride[visit.carry.axis] and shape[i] == visit.width
    ]
    if len(found) != 1:
        raise visit.refuse("a strided view hides the feature axis")
    return [(0, visit.carry.at(found[0] - len(shape)))]


def permutation(visit: Visit) -> Iterable[Step]:
    rank = len(visit.shape)
    order = list(range(rank))
    if visit.operation == "T":
        order.reverse()
    elif visit.operation == "Permute":
        order = [signed(dim, rank) for dim in visit.node._saved_dims]
    else:
        one, other = (signed(d, rank) for d in (visit.node._saved_dim0, visit.node._saved_dim1))
        order[one], order[other] = other, one
    return [(0, visit.carry.at(order[rank + visit.carry.axis] - rank))]


def select(visit: Visit) -> Iterable[Step]:
    """One slice of an axis that is gone in the output (select, unbind)."""
    rank = len(visit.shape_in(0))
    gone = signed(visit.node._saved_dim, rank)
    at = len(visit.shape) + visit.carry.axis
    return [(0, visit.carry.at((at + 1 if at >= gone else at) - rank))]


def split(visit: Visit) -> Iterable[Step]:
    if visit.shape_in(0)[visit.carry.axis] != visit.width:
        raise visit.refuse("the feature axis is split")
    return first(visit)


def stack(visit: Visit) -> Iterable[Step]:
    rank = len(visit.shape)
    new = signed(visit.node._saved_dim, rank)
    at = rank + visit.carry.axis
    if at == new:
        raise visit.refuse("the feature axis is stacked from pieces")
    carry = visit.carry.at((at - 1 if at > new else at) - (rank - 1))
    return [(i, carry) for i in range(len(visit.inputs))]


def cat(visit: Visit) -> Iterable[Step]:
    present = [i for i in range(len(visit.inputs)) if visit.inputs[i][0] is not None]
    if not all(visit.carries(i) for i in present):
        raise visit.refuse("the feature axis is joined from pieces")
    return [(i, visit.carry) for i in present]


def reduction(visit: Visit) -> Iterable[Step]:
    """Sum or mean over other axes."""
    old = visit.shape_in(0)
    if len(old) == len(visit.shape):
        if old[visit.carry.axis] != visit.width:
            raise visit.refuse("the feature axis is summed")
        return first(visit)
    dims = getattr(visit.node, "_saved_dim", None)
    if dims is None:
        raise visit.refuse("everything is summed")
    gone = {signed(dim, len(old)) for dim in ([dims] if isinstance(dims, int) else dims)}
    kept = [i for i in range(len(old)) if i not in gone]
    return [(0, visit.carry.at(kept[len(visit.shape) + visit.carry.axis] - len(old)))]


def matmul(visit: Visit) -> Iterable[Step]:
    """A · B: the columns' features come from B, the rows' from A."""
    return [(1, visit.carry.at(-1)) if visit.carry.axis == -1 else (0, visit.carry.at(-2))]


def addmm(visit: Visit) -> Iterable[Step]:
    """Bias + A · B; the bias writes as well."""
    bias = visit.inputs[0][0]
    axis = visit.carry.axis
    steps: list[Step] = [(2, visit.carry.at(-1)) if axis == -1 else (1, visit.carry.at(-2))]
    if bias is not None:
        has_axis = len(visit.shape_in(0)) >= -axis
        steps.append((0, visit.carry.at(axis if has_axis else -1)))
    return steps


def embedding(visit: Visit) -> Iterable[Step]:
    return [(0, visit.carry.at(-1))]


def grouped_matmul(visit: Visit) -> Iterable[Step]:
    return [(1, visit.carry.at(-1))]


def in_place(visit: Visit) -> Iterable[Step]:
    """An in-place write into a view: what was there, and what was written."""
    steps: list[Step] = []
    for index, (node, _) in enumerate(visit.inputs):
        if node is None:
            continue
        axis = visit.carry.axis
        if index and visit.node in visit.strides:
            base, written = visit.strides[visit.node]
            same = [j for j, stride in enumerate(written) if stride == base[axis]]
            if len(same) != 1:
                raise visit.refuse("an in-place write into a reshaped view")
            axis = same[0] - len(written)
        shape = visit.shape_in(index)
        if len(shape) < -axis or shape[axis] != visit.width:
            raise visit.refuse("an in-place write into a reshaped view")
        steps.append((index, visit.carry.at(axis)))
    return steps


_BY_RULE: Mapping[Rule, str] = {
    first: "Clone ToCopy Alias Slice Expand Repeat MaskedFill Neg NativeDropout ConstantPadNd "
    "Detach Contiguous CopyBackwards Lift RepeatInterleave",
    across: "Index IndexSelect Gather Roll Flip Cumsum",
    every: "Add Sub Rsub Where Copy MaskedScatter AddN",
    every_across: "IndexAdd IndexPut IndexCopy Scatter ScatterAdd",
    product: "Mul",
    quotient: "Div",
    norm: "NativeLayerNorm FusedRmsNorm RmsNorm",
    view: "View UnsafeView Reshape ReshapeAlias Unsqueeze Squeeze Unflatten",
    as_strided: "AsStrided",
    permutation: "T Transpose Permute Swapaxes Movedim",
    select: "Select Unbind",
    split: "Split SplitWithSizes Chunk",
    stack: "Stack",
    cat: "Cat",
    reduction: "Sum Mean",
    matmul: "Mm Bmm",
    addmm: "Addmm Baddbmm",
    embedding: "Embedding",
    grouped_matmul: "GroupedMm",
    in_place: "CopySlices",
}
RULES: Mapping[str, Rule] = {
    operation: rule for rule, operations in _BY_RULE.items() for operation in operations.split()
}
