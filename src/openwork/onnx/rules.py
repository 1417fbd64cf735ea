"""How the operators of ONNX relate the axes of their inputs and outputs; the work is done by the rules of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openwork.graph import rules_layers as layers
from openwork.graph import rules_shape as shapes
from openwork.graph.axes import Axis, cat, cut, freeze, is_frozen, measured, prod, same
from openwork.graph.values import Op, Value, broadcast
from openwork.onnx.file import needed
from openwork.onnx.running import Seen


@dataclass(frozen=True)
class Change:
    """A number that follows a width: entry i of an input (by place) or attribute (by name) is as long as ``axes[i]``.

    ``node`` is the first output of the node; entries that are None stay.
    """

    node: str
    slot: int | str
    axes: tuple[Axis | None, ...]


@dataclass
class Step:
    """One node, as its rule sees it."""

    node: Any
    op: Op
    seen: Seen
    changes: list[Change]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute as Python value."""
        for a in self.node.attribute:
            if a.name == name:
                value = needed("onnx").helper.get_attribute_value(a)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def numbers(self, name: str, place: int) -> list[int] | None:
        """Whole numbers that are an attribute in old operator sets and an input in new ones; None where absent."""
        if (value := self.attribute(name)) is not None:
            return [value] if isinstance(value, int) else list(value)
        wanted = self.node.input[place] if place < len(self.node.input) else ""
        return [int(n) for n in self.seen.short[wanted].reshape(-1)] if wanted in self.seen.short else None

    def has(self, place: int) -> bool:
        """Whether an optional input is given."""
        return place < len(self.node.input) and bool(self.node.input[place])

    def named(self, name: str) -> Op:
        """The operation under a name that the rules of torch look at."""
        return replace(self.op, name=name)

    def change(self, slot: int | str, axes: Sequence[Axis | None]) -> None:
        """Note numbers that follow widths."""
        self.changes.append(Change(self.op.module, slot, tuple(axes)))


Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}
"""Operator -> its rule ``(step, *inputs) -> Value``, a tuple, or NotImplemented; absent inputs are None."""


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register the rule of an operator."""

    def add(made: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, made))
        return made

    return add


@operator("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "PRelu", "Where", "And", "Or", "Xor", "Equal", "Less",
          "Greater", "LessOrEqual", "GreaterOrEqual", "Sum", "Mean", "BitShift")  # fmt: skip
def several(step: Step, *values: Value) -> Value:
    return layers.elementwise(step.op, [v for v in values if v is not None])


@operator("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg",
          "Clip", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Gelu", "Mish", "Swish", "ThresholdedRelu",
          "Ceil", "Floor", "Round", "Sign", "Reciprocal", "Sin", "Cos", "Not", "IsNaN", "IsInf", "Shrink")  # fmt: skip
def single(step: Step, x: Value, *_: Any) -> Value:
    return layers.elementwise(step.op, [x])


@operator("Identity", "Cast", "CastLike", "Dropout")
def copied(step: Step, x: Value, *_: Any) -> Any:
    return (x,) * len(step.op.shapes)


@operator("Gemm")
def gemm(step: Step, a: Value, b: Value, c: Value | None = None) -> Value:
    a = a.moved(a.axes[::-1]) if step.attribute("transA", 0) else a
    b = b.moved(b.axes[::-1]) if step.attribute("transB", 0) else b
    out = layers.matmul(step.op, a, b)
    return out if c is None else Value(broadcast([out, c]))


@operator("MatMul")
def matmul(step: Step, a: Value, b: Value) -> Value:
    return layers.matmul(step.op, a, b)


@operator("Einsum")
def einsum(step: Step, *values: Value) -> Any:
    return layers.einsum(step.op, step.attribute("equation"), values)


@operator("Conv", "ConvTranspose")
def convolution(step: Step, x: Value, weight: Value, bias: Value | None = None) -> Value:
    name = "aten.conv_transpose" if step.node.op_type == "ConvTranspose" else "aten.conv"
    return layers.convolution(step.named(name), x, weight, bias, groups=step.attribute("group", 1))


@operator("BatchNormalization")
def batch_norm(step: Step, x: Value, *weights: Value) -> Any:
    return NotImplemented if step.attribute("training_mode", 0) else layers.batch_norm(step.op, x, *weights)


@operator("InstanceNormalization")
def instance_norm(step: Step, x: Value, *weights: Value) -> Any:
    for axis in x.axes[2:]:
        measured(axis, step.op.where)
    return layers.batch_norm(step.op, x, *weights)


@operator("LayerNormalization", "RMSNormalization")
def layer_norm(step: Step, x: Value, *weights: Value) -> Any:
    sizes = step.op.shape[step.attribute("axis", -1) :]
    if any(w.ndim not in (0, len(sizes)) for w in weights):
        return NotImplemented
    return layers.layer_norm(step.op, x, sizes, *(w for w in weights if w.ndim))


@operator("GroupNormalization")
def group_norm(step: Step, x: Value, scale: Value, bias: Value) -> Any:
    groups = step.attribute("num_groups")
    if scale.at(0).size != x.at(1).size:  # one scale a group, in operator sets before 21
        return NotImplemented
    return layers.group_norm(step.op, x, groups, scale, bias)


@operator("Softmax", "LogSoftmax")
def softmax(step: Step, x: Value) -> Value:
    measured(x.at(step.attribute("axis", -1)), step.op.where)
    return x


@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare",
          "ReduceLogSumExp")  # fmt: skip
def reduction(step: Step, x: Value, *_: Any) -> Any:
    dims = step.numbers("axes", 1)
    if dims is None and step.has(1):
        return NotImplemented
    if not dims and step.attribute("noop_with_empty_axes", 0):
        return x
    return layers.reduction(step.named("aten.sum"), x, dims or None)


@operator("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "LpPool", "GlobalLpPool")
def pooled(step: Step, x: Value) -> Any:
    out = Value((*x.axes[:2], *(step.op.fixed(n) for n in step.op.shape[2:])))
    return (out,) * len(step.op.shapes)


@operator("Resize", "Upsample")
def resized(step: Step, x: Value, *_: Any) -> Any:
    if step.op.shape[:2] != tuple(a.size for a in x.axes[:2]) or step.attribute("axes") is not None:
        return NotImplemented
    out = Value((*x.axes[:2], *(step.op.fixed(n) for n in step.op.shape[2:])))
    if step.has(3):
        step.change(3, out.axes)
    return out


@operator("Reshape")
def reshape(step: Step, x: Value, *_: Any) -> Any:
    out, target = shapes.reshape(step.op, x), step.numbers("shape", 1)
    if out is NotImplemented or target is None:
        return NotImplemented
    step.change(1, [a if n > 0 else None for a, n in zip(out.axes, target, strict=True)])
    return out


@operator("Flatten", "Squeeze", "Unsqueeze")
def flattened(step: Step, x: Value, *_: Any) -> Any:
    return shapes.reshape(step.op, x)


@operator("Transpose")
def transpose(step: Step, x: Value) -> Value:
    return shapes.permute(step.op, x, step.attribute("perm", list(range(x.ndim))[::-1]))


@operator("Expand")
def expand(step: Step, x: Value, *_: Any) -> Any:
    out, target = shapes.expand(step.op, x), step.numbers("shape", 1)
    if target is None:
        return NotImplemented
    step.change(1, [a if n > 1 else None for a, n in zip(out.axes[-len(target) :], target, strict=True)])
    return out


@operator("Concat")
def concatenate(step: Step, *values: Value) -> Value:
    return shapes.concatenate(step.op, values, step.attribute("axis"))


@operator("Split")
def split(step: Step, x: Value, *_: Any) -> Any:
    """Lengths that are written down are rewritten; without them the pieces stay equal."""
    dim = step.attribute("axis", 0)
    sizes = [s[dim] for s in step.op.shapes]
    if step.attribute("split") is None and not step.has(1):
        return shapes.split(step.named("aten.chunk"), x, len(sizes), dim)
    if step.numbers("split", 1) is None:
        return NotImplemented
    pieces = cut(x.at(dim), sizes)
    step.change("split" if step.attribute("split") is not None else 1, pieces)
    return tuple(x.moved([p if i == dim % x.ndim else a for i, a in enumerate(x.axes)]) for p in pieces)


@operator("Slice")
def slice_(step: Step, x: Value, *_: Any) -> Any:
    starts, ends = step.numbers("starts", 1), step.numbers("ends", 2)
    if starts is None or ends is None:
        return NotImplemented
    dims = step.numbers("axes", 3) or list(range(len(starts)))
    steps = step.numbers("steps", 4) or [1] * len(starts)
    begins: list[Axis | None] = [None] * len(starts)
    stops: list[Axis | None] = [None] * len(starts)
    for i, (dim, start, by) in enumerate(zip(dims, starts, steps, strict=True)):
        axis, size = x.at(dim), step.op.shape[dim]
        if is_frozen(axis) or (by == 1 and size == axis.size):
            axes = list(x.axes)
            axes[dim] = axis if size == axis.size and by == 1 else Axis(size, "a piece of an axis that stays")
            x = x.moved(axes)
        elif by == 1:
            begin = min(max(start + axis.size if start < 0 else start, 0), axis.size)
            before, kept = cut(axis, [begin, size, axis.size - begin - size])[:2]
            begins[i], stops[i] = before if begin else None, cat(before, kept) if begin else kept
            x = x.moved([kept if d == dim % x.ndim else a for d, a in enumerate(x.axes)])
        elif by == -1 and size == axis.size:
            x = shapes.flip(step.op, x, [dim])
            if x is NotImplemented:
                return x
        elif by > 1 and axis.size % by == 0 and 0 <= start < by and axis.size // by == size and ends[i] >= axis.size:
            x = shapes.slice_(step.op, x, dim, start, ends[i], by)
            stops[i] = axis if ends[i] == axis.size else None
        else:
            return NotImplemented
    step.change(1, begins)
    step.change(2, stops)
    return x


@operator("Pad")
def pad(step: Step, x: Value, *_: Any) -> Any:
    by = step.numbers("pads", 1)
    dims = step.numbers("axes", 3) or list(range(x.ndim))
    if by is None:
        return NotImplemented
    ends = {d % x.ndim: (by[i], by[i + len(dims)]) for i, d in enumerate(dims)}
    return shapes.pad(step.op, x, [n for d in reversed(range(x.ndim)) for n in ends.get(d, (0, 0))])


@operator("DepthToSpace", "SpaceToDepth")
def depth(step: Step, x: Value) -> Value:
    r = step.attribute("blocksize")
    if step.node.op_type == "DepthToSpace" and step.attribute("mode", "DCR") == "CRD":
        return shapes.pixel_shuffle(step.named("aten.pixel_shuffle"), x, r)
    within = prod(step.op.fixed(r), step.op.fixed(r))
    spread = [step.op.fixed(n) for n in step.op.shape[2:]]
    if step.node.op_type == "SpaceToDepth":
        return x.moved([x.at(0), prod(within, x.at(1)), *spread])
    kept = Axis(step.op.shape[1])
    same(x.at(1), prod(within, kept))
    return x.moved([x.at(0), kept, *spread])


@operator("Gather")
def gather(step: Step, x: Value, ids: Value) -> Value:
    dim = step.attribute("axis", 0) % x.ndim
    freeze(x.at(dim), f"picked from ({step.op.where})")
    return x.moved([*x.axes[:dim], *ids.axes, *x.axes[dim + 1 :]])


@operator("LSTM", "GRU", "RNN")
def recurrence(step: Step, x: Value, w: Value, r: Value, b: Value | None = None, *rest: Value | None) -> Any:
    """``W [ways, gates x hidden, inputs]``, ``R [ways, gates x hidden, hidden]``, ``B [ways, 2 x gates x hidden]``."""
    op, hidden, inputs = step.op, Axis(r.at(2).size), Axis(w.at(2).size)
    gates = w.at(1).size // hidden.size
    stacked = prod(op.fixed(gates, "gates of a recurrent layer"), hidden) if gates > 1 else hidden
    same(inputs, x.at(2))
    op.consumes(w, 2, x.at(2))
    op.consumes(r, 2, hidden)
    for weight in (w, r):
        same(weight.at(1), stacked)
        freeze(weight.at(0), "directions of a recurrent layer")
    if b is not None:
        same(b.at(1), prod(op.fixed(2 * gates, "gates of a recurrent layer"), hidden))
        freeze(b.at(0), "directions of a recurrent layer")
    for state in rest:
        if state is None or state.ndim < 2:
            continue
        if state.ndim == 3 and state.weight:
            same(state.at(2), hidden)
        elif state.ndim == 3:
            freeze(hidden, f"the length of its first state is computed ({op.where})")
        else:
            for axis in state.axes:
                freeze(axis, f"peepholes ({op.where})")
            freeze(hidden, f"peepholes ({op.where})")
    op.multiplies(x.at(0), x.at(1), *w.axes)
    op.multiplies(x.at(0), x.at(1), *r.axes)
    if step.attribute("hidden_size") is not None:
        step.change("hidden_size", (hidden,))
    ways = op.fixed(w.at(0).size)
    wide = Value((x.at(0), ways, x.at(1), hidden))
    last = Value((ways, x.at(1), hidden))
    return tuple(wide if len(s) == 4 else last for s in op.shapes)


@operator("Trilu", "CumSum")
def ordered(step: Step, x: Value, *_: Any) -> Value:
    for axis in x.axes:
        freeze(axis, f"order matters ({step.op.where})")
    return x


@operator("Shape", "Size", "Range", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "OneHot")
def computed(step: Step, *values: Value | None) -> Any:
    if step.node.op_type == "OneHot":
        return NotImplemented
    return Value(tuple(step.op.fixed(n, f"length computed ({step.op.where})") for n in step.op.shape))
