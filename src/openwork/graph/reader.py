"""Reads a traced graph operation by operation and relates the axes of everything in it."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import openwork.graph.rules_layers
import openwork.graph.rules_shape  # noqa: F401  (registers the rules)
from openwork.graph.axes import OUTPUT, Axis, find, freeze, is_frozen, same
from openwork.graph.rules_layers import elementwise
from openwork.graph.trace import Traced
from openwork.graph.values import RULES, Notes, Op, Value

IGNORED = {"aten._assert_tensor_metadata", "aten._assert_scalar", "aten.sym_size", "aten._assert_async"}


def _shared(a: str, b: str) -> int:
    """How many leading parts two module paths share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a.split("."), b.split("."), strict=False)))


@dataclass
class Reading:
    """All axes of a network after its graph was read.

    ``sites`` holds the axes of every parameter and buffer, ``seen`` the axes that pass through each module (for its
    attributes), ``unknown`` the operations without a rule that something had to stay for. ``nodes`` holds arguments and
    value of every operation, ``products`` the multiplications that it makes.
    """

    sites: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    seen: dict[str, list[Axis]] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    nodes: dict[Node, Any] = field(default_factory=dict)
    products: dict[Node, list[tuple[Axis, ...]]] = field(default_factory=dict)
    n_ops: int = 0


def read(model: nn.Module, traced: Traced) -> Reading:
    """Relate all axes. Unknown operations freeze what they touch, with their name as the reason; nothing is guessed."""
    reading = Reading()
    first: dict[int, str] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors.items():
        owner = first.setdefault(id(tensor), name)
        reading.sites[name] = (
            reading.sites[owner] if owner in reading.sites else tuple(Axis(int(n)) for n in tensor.shape)
        )
    inputs: dict[str, Value] = {}
    for node in traced.module.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in traced.tensors:
            inputs[node.name] = Value(reading.sites[traced.tensors[node.name]], weight=True)
        elif isinstance(node.meta.get("val"), Tensor):
            constant, val = node.name in traced.values, node.meta["val"]
            reason = "constant of the forward pass" if constant else "input of the model"
            ids = not constant and val.dtype in (torch.int64, torch.int32) and not any(v.given for v in inputs.values())
            inputs[node.name] = Value(tuple(Axis(_length(n), reason) for n in val.shape), given=ids)
    out = _Reader(reading, traced.module, "", Numbers(model)).run(
        [inputs.get(n.name) for n in _placeholders(traced.module)]
    )
    for value in values_in(out):
        for axis in value.axes:
            freeze(axis, OUTPUT)
    _link_vocabulary(reading, values_in(out))
    _link_experts(reading.notes)
    return reading


def _link_vocabulary(reading: Reading, outputs: Sequence[Value]) -> None:
    """Logits ``[batch, position, token]`` count the same tokens as the embedding, tied or not."""
    tables = {id(find(a)): find(a) for axes in reading.sites.values() for a in axes if "vocabulary" in find(a).tags}
    if len(tables) == 1:
        table = next(iter(tables.values()))
        for value in outputs:
            if value.ndim > 2 and value.at(-1).size == table.size and find(value.at(-1)).kind == "atom":
                same(value.at(-1), table)


def _link_experts(notes: Notes) -> None:
    """A router's scores belong to the experts of the nearest module: what lies between them is data, not axes."""
    for where, bank in notes.banks:
        near = [(_shared(where, at), axis) for at, axis in notes.routed if axis.size == bank.size]
        if near:
            same(bank, max(near, key=lambda pair: pair[0])[1])
        else:
            freeze(bank, "no router was found for these experts")
    for where, axis in notes.routed:
        if "experts" not in find(axis).tags:
            freeze(axis, f"picked from by data (topk in {where})")


def _placeholders(module: GraphModule) -> list[Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


class Numbers:
    """The whole numbers that a module and the ones around it hold as attributes: sizes that can be rewritten."""

    def __init__(self, model: nn.Module):
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._found: dict[str, frozenset[int]] = {}

    def of(self, path: str) -> frozenset[int]:
        """Of the module at a path and all that hold it."""
        if path not in self._found:
            held = vars(self._modules[path]).values() if path in self._modules else ()
            mine = frozenset(v for v in held if isinstance(v, int) and not isinstance(v, bool) and v > 1)
            self._found[path] = mine | self.of(path.rpartition(".")[0]) if path else mine
        return self._found[path]


class _Reader:
    """One graph, or a part of one that torch wraps (a block without gradients, an autocast region)."""

    def __init__(self, reading: Reading, module: GraphModule, where: str, numbers: Numbers):
        self.reading, self.module, self.where, self.numbers = reading, module, where, numbers

    def run(self, inputs: Sequence[Any]) -> Any:
        known: dict[Node, Any] = dict(zip(_placeholders(self.module), inputs, strict=False))
        result: Any = None
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: known.get(n))
            if node.op == "get_attr":
                known[node] = _attribute(self.module, str(node.target))
            elif node.op == "output":
                result = args[0]
            elif node.op == "call_function":
                known[node] = self._call(node, args, dict(kwargs))
            if known.get(node) is not None:
                self.reading.nodes[node] = (args, known[node])
        return result

    def _call(self, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], list | tuple) else None
        inner = next((a for a in args if isinstance(a, GraphModule)), None)
        where = _module_of(node) or self.where
        if inner is not None:
            rest = args[list(args).index(inner) + 1 :]
            return _Reader(self.reading, inner, where, self.numbers).run(rest)
        name = str(getattr(node.target, "overloadpacket", node.target))
        shapes = _shapes(node.meta.get("val"))
        if name in IGNORED or not shapes:
            return None
        self.reading.n_ops += 1
        op = Op(name, shapes, where, self.reading.notes, self.numbers.of(where), _itemsize(node.meta.get("val")))
        before = len(op.notes.macs)
        found = self._apply(op, node, args, kwargs)
        if len(op.notes.macs) > before:
            self.reading.products[node] = op.notes.macs[before:]
        axes = [a for value in values_in([found, args, kwargs]) for a in value.axes]
        for path in (where, where.rpartition(".")[0]):  # a module also knows what goes in and out of its children
            self.reading.seen.setdefault(path, []).extend(axes)
        return found

    def _apply(self, op: Op, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
        values = values_in([args, kwargs])
        found: Any = NotImplemented
        if op.name in RULES:
            found = RULES[op.name](op, *args, **kwargs)
        elif values and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            found = elementwise(op, values)
        if found is not NotImplemented and agrees(found, op.shapes):
            return found
        made = without_rule(self.reading, op, values)
        return made[0] if isinstance(node.meta["val"], Tensor) else made


def without_rule(reading: Reading, op: Op, values: Sequence[Value]) -> tuple[Value, ...]:
    """Nothing is guessed: all axes that an operation touches stay, with its name as the reason; its outputs."""
    frozen = [v for v in values if v.axes and not all(map(is_frozen, v.axes))]
    for value in values:
        for axis in value.axes:
            freeze(axis, f"operation without a rule: {op.where}")
    if frozen:
        reading.unknown[op.where] = reading.unknown.get(op.where, 0) + 1
    return tuple(Value(tuple(op.fixed(n, f"made by {op.where}") for n in s)) for s in op.shapes)


def agrees(found: Any, shapes: list[tuple[int, ...]]) -> bool:
    """Whether a rule's answer has the shapes that the operation really gave."""
    values = values_in(found)
    return len(values) >= len(shapes) and all(
        tuple(a.size for a in v.axes) == s for v, s in zip(values, shapes, strict=False) if v.axes or not s
    )


def values_in(tree: Any) -> list[Value]:
    """All values in nested lists and mappings."""
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, dict):
        return [v for x in tree.values() for v in values_in(x)]
    return [v for x in tree for v in values_in(x)] if isinstance(tree, list | tuple) else []


def _shapes(val: Any) -> list[tuple[int, ...]]:
    if isinstance(val, Tensor):
        return [tuple(map(_length, val.shape))]
    return [s for v in val for s in _shapes(v)] if isinstance(val, list | tuple) else []


def _itemsize(val: Any) -> int:
    first = val[0] if isinstance(val, list | tuple) and val else val
    return first.element_size() if isinstance(first, Tensor) else 4


def _length(n: Any) -> int:
    """A length that depends on data gets a number that no other axis has, and the same expression the same one."""
    known = n if isinstance(n, int) else n.node.maybe_as_int()
    return int(known) if known is not None else (1 << 40) + zlib.crc32(str(n).encode())


def _attribute(module: GraphModule, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    if isinstance(value, Tensor):
        return Value(tuple(Axis(int(n), "constant of the forward pass") for n in value.shape))
    return value


def _module_of(node: Node) -> str:
    """The path of the innermost module that runs an operation."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""
