"""The groups of an ONNX model: its operators' rules on the same axes as those of torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openwork.graph.axes import Axis, freeze
from openwork.graph.groups import Groups, sort_out
from openwork.graph.reader import Reading, agrees, values_in, without_rule
from openwork.graph.values import Op, Value
from openwork.onnx.file import array_of
from openwork.onnx.rules import OPERATORS, Change, Step
from openwork.onnx.running import Array, Seen, inputs_of, observe


@dataclass
class OnnxGraph(Groups):
    """Groups of a model, its weights by name, and the constants and attributes that change with its widths."""

    weights: dict[str, Array] = field(repr=False)
    changes: list[Change] = field(repr=False)
    seen: Seen = field(repr=False)


def onnx_graph(model: Any, *, dims: Mapping[str, int] | None = None) -> OnnxGraph:
    """Find which entries of which initializers must be removed together.

    The model is run once on made inputs, so that every shape is known. Operators without a rule, control flow among
    them, freeze the axes of everything they touch, and the reason names them.

    Args:
        model: an ``onnx.ModelProto`` from ``read_onnx``.
        dims: sizes of the open dimensions of the inputs by name; 2 where none is given.

    Raises:
        FileError: ONNX Runtime refuses the model.
        RecipeError: inputs that cannot be made up.
    """
    start = time.perf_counter()
    seen = observe(model, inputs_of(model, dims or {}))
    reading = Reading()
    changes: list[Change] = []
    values: dict[str, Value] = {}
    constants = {t.name: array_of(t) for t in model.graph.initializer}
    for name, array in constants.items():
        seen.shapes[name], seen.dtypes[name] = array.shape, array.dtype
        if array.dtype.kind in "iu" and array.size <= 64:
            seen.short[name] = array
    weights = {n: a for n, a in constants.items() if a.ndim and a.dtype.kind not in "iub" and a.size}
    for name, array in constants.items():
        if name in weights:
            reading.sites[name] = tuple(Axis(n) for n in array.shape)
            values[name] = Value(reading.sites[name], weight=True)
        else:
            values[name] = Value(tuple(Axis(n, "constant of the model") for n in array.shape))
    for value in model.graph.input:
        values[value.name] = Value(tuple(Axis(n, "input of the model") for n in seen.shapes[value.name]))
    read: set[str] = set()
    for node in model.graph.node:
        names = [*node.input, *_captured(node)]
        read.update(names)
        found = _apply(reading, seen, node, [values.get(n) if n else None for n in names], changes)
        values.update(zip([n for n in node.output if n], found, strict=False))
    for output in model.graph.output:
        for axis in values[output.name].axes:
            freeze(axis, "output of the model")
    for name in set(weights) - read:
        for axis in reading.sites[name]:
            freeze(axis, "no operator reads it")
    for label, axis in reading.notes.groups:
        changes.append(Change(label, "group", (axis,)))
    groups, frozen = sort_out(reading, dict.fromkeys(weights, True))
    seconds = time.perf_counter() - start
    return OnnxGraph(groups, frozen, reading.unknown, reading.n_ops, seconds, reading, weights, changes, seen)


def _apply(reading: Reading, seen: Seen, node: Any, inputs: list[Value | None], changes: list[Change]) -> list[Value]:
    outputs = [n for n in node.output if n]
    op = Op(node.op_type, [seen.shapes.get(n, ()) for n in outputs], outputs[0], reading.notes)
    step = Step(node, op, seen, [])
    reading.n_ops += 1
    known = [v for v in inputs if v is not None]
    if _is_shape_arithmetic(seen, node, known):
        return [Value(tuple(op.fixed(n, "computed from shapes") for n in s)) for s in op.shapes]
    found: Any = NotImplemented
    rule = None if node.domain not in ("", "ai.onnx") else OPERATORS.get(node.op_type)
    if rule is not None and not _has_graphs(node):
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        try:
            found = rule(step, *inputs)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            found = NotImplemented  # a node of a form that the rule does not know: it freezes what it touches
    if found is not NotImplemented and agrees(found, op.shapes):
        changes += step.changes
        return values_in(found)
    return list(without_rule(reading, op, known))


def _is_shape_arithmetic(seen: Seen, node: Any, inputs: list[Value]) -> bool:
    """Short integers made of nothing but short integers."""
    names = [n for n in (*node.input, *node.output) if n]
    whole = all(n in seen.dtypes and seen.dtypes[n].kind in "iub" and len(seen.shapes[n]) < 2 for n in names)
    return node.op_type in ("Shape", "Size") or (whole and not any(v.weight for v in inputs))


def _has_graphs(node: Any) -> bool:
    return any(a.graphs or a.HasField("g") for a in node.attribute)


def _captured(node: Any) -> list[str]:
    """Values that the graphs of control flow take from around them."""
    found = []
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
            for inner in graph.node:
                found += [n for n in (*inner.input, *_captured(inner)) if n and n not in own]
                own.update(inner.output)
            found += [o.name for o in graph.output if o.name not in own]
    return found
