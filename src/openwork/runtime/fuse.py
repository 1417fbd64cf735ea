"""Activations and residual sums that a forward computes behind a layer, moved into the layer's own kernel.

A module keeps its class (of which it becomes a subclass of the same name), its children, its state and its hooks; only
its forward is another one, generated from its trace.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from openwork.errors import OpenworkError
from openwork.runtime.fold import ACTIVATIONS, is_hooked
from openwork.runtime.layers import Packed
from openwork.runtime.plain import frozen, is_plain
from openwork.runtime.prepacked import PrepackedConv2d
from openwork.runtime.stand_in import shell

Fusions = dict[str, list[str]]
"""Layer of a module -> what it took over: ``residual``, an activation, or both in this order."""

FUNCTIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.silu: "silu", F.relu6: "relu6"}
SUMS = (operator.add, operator.iadd, torch.add)


class Leaves(fx.Tracer):
    """Looks into nothing but the forward itself."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def fuse(model: nn.Module) -> dict[str, Fusions]:
    """Rewrite the forwards of all modules in which a packed layer can take over what follows it, in place.

    Returns:
        Module -> what its layers took over; ``apply`` does the same on another copy.
    """
    done: dict[str, Fusions] = {}
    for name, module in list(model.named_modules()):
        found = fuse_one(module)
        if found:
            done[name] = found
    return done


def fuse_one(module: nn.Module, given: Fusions | None = None) -> Fusions:
    """``fuse`` for one module. ``given`` is what was found before, when the layers have taken it over already."""
    runs = [m for m in module.children() if isinstance(m, Packed | PrepackedConv2d | nn.Sequential | nn.ModuleList)]
    if not runs or is_fused(module) or not is_plain(module):
        return {}
    try:
        graph = Leaves().trace(shell(module))
    except Exception:  # (tracing runs the user's code on stand-ins; any failure means "cannot be traced")
        return {}
    if any(n.op == "get_attr" and not hasattr(module, str(n.target).partition(".")[0]) for n in graph.nodes):
        return {}  # a tensor that the forward made without its inputs became a constant of the copy that was traced
    found = _rewrite(graph, module, given)
    if found:
        module.openwork_fused = found  # type: ignore[assignment]
        module.__class__ = _subclass(type(module), graph, frozen(module))
    return found


_MADE: dict[tuple[type[nn.Module], str, frozenset[str]], type[nn.Module]] = {}


def _subclass(base: type[nn.Module], graph: fx.Graph, fixed: frozenset[str]) -> type[nn.Module]:
    """The class with the forward of a graph; copies of a model share it. What is ``fixed`` in it cannot be set."""
    code = graph.python_code("self")
    if (base, code.src, fixed) not in _MADE:
        space = dict(code.globals)
        exec(compile(code.src, f"<fused {base.__name__}>", "exec"), space)
        body = {"forward": space["forward"], "__reduce_ex__": _reduce, "__deepcopy__": _deepcopy, "openwork_base": base}
        if fixed:
            body["__setattr__"] = _keeping(base, fixed)
        same = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        _MADE[base, code.src, fixed] = type(base.__name__, (base,), {**body, **same})
    return _MADE[base, code.src, fixed]


def _keeping(base: type[nn.Module], fixed: frozenset[str]) -> Callable[[nn.Module, str, Any], None]:
    def put(self: nn.Module, name: str, value: Any) -> None:
        if name in fixed:
            raise OpenworkError(
                f"{base.__name__}: {name} is a constant of the fused forward and cannot be set any more; set it before "
                "packing, or pack with fold=False"
            )
        base.__setattr__(self, name, value)

    return put


def is_fused(module: nn.Module) -> bool:
    """Whether the forward of this module was rewritten."""
    return hasattr(type(module), "openwork_base")


def unfuse(model: nn.Module) -> None:
    """Take back what ``fuse`` did, in place."""
    for module in model.modules():
        if is_fused(module):
            for name, words in module.openwork_fused.items():  # type: ignore[union-attr, operator]
                if words[-1] != "residual":
                    module.get_submodule(name).activation = "none"  # type: ignore[assignment]
            del module.openwork_fused
            module.__class__ = type(module).openwork_base  # type: ignore[attr-defined]


def apply(model: nn.Module, fusions: Mapping[str, Fusions]) -> None:
    """Do again what ``fuse`` returned, on a copy of the same architecture.

    Raises:
        ValueError: the model does not compute what was fused.
    """
    for name, given in fusions.items():
        if fuse_one(model.get_submodule(name), given) != given:
            raise ValueError(f"{name or 'the model'} does not compute what was fused in it: {given}")


def word_of(module: nn.Module) -> str | None:
    """The activation that a module computes and kernels know, or None."""
    if is_hooked(module):
        return None
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if type(module) in ACTIVATIONS:
        return ACTIVATIONS[type(module)]
    simple = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
    if not simple or type(module).__module__.startswith("torch."):
        return None
    try:
        nodes = list(Leaves().trace(module).nodes)
    except Exception:  # (as above)
        return None
    return _word(nodes[1], module) if len(nodes) == 3 and nodes[1].args[:1] == (nodes[0],) else None


def _word(node: fx.Node, module: nn.Module) -> str | None:
    """The activation that a node computes of its first argument."""
    if node.op == "call_module":
        return word_of(module.get_submodule(str(node.target)))
    if node.op == "call_method":
        return "relu" if node.target in ("relu", "relu_") and len(node.args) == 1 else None
    if node.op != "call_function" or len(node.args) != 1:
        return None
    if node.target is F.gelu:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(node.kwargs.get("approximate", "none")))
    return FUNCTIONS.get(node.target) if set(node.kwargs) <= {"inplace"} else None


def _rewrite(graph: fx.Graph, module: nn.Module, given: Fusions | None) -> Fusions:
    targets = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    found: Fusions = {}
    for node in list(graph.nodes):
        name = str(node.target)
        if node.op != "call_module" or targets.count(name) != 1 or node.kwargs or len(node.args) != 1:
            continue
        layer = module.get_submodule(name)
        if not isinstance(layer, Packed | PrepackedConv2d) or is_hooked(layer):
            continue
        if name not in given if given is not None else layer.activation != "none":
            continue
        words: list[str] = []
        if isinstance(layer, Packed):
            node = _take_residual(graph, module, node, words)
        _take_activation(graph, module, node, layer, words)
        if words:
            found[name] = words
    return found


def _behind(node: fx.Node, module: nn.Module) -> tuple[fx.Node, fx.Node] | None:
    """The only reader of a node, past modules that do nothing here, and what it reads."""
    while len(node.users) == 1:
        reader = next(iter(node.users))
        nothing = reader.op == "call_module" and module.get_submodule(str(reader.target))
        if not (isinstance(nothing, nn.Identity | nn.Dropout) and not nothing.training and not is_hooked(nothing)):
            return node, reader
        node = reader
    return None


def _take_residual(graph: fx.Graph, module: nn.Module, node: fx.Node, words: list[str]) -> fx.Node:
    """The node that computes the sum in the layer, or the node as it was."""
    pair = _behind(node, module)
    if pair is None:
        return node
    last, total = pair
    added = total.op == "call_function" and total.target in SUMS
    added = added or (total.op == "call_method" and total.target in ("add", "add_"))
    if not added or len(total.args) != 2 or total.kwargs:
        return node
    other = total.args[1] if total.args[0] is last else total.args[0]
    if not isinstance(other, fx.Node) or other is last or _changes_between(node, total, module):
        return node
    with graph.inserting_before(total):
        new = graph.call_module(str(node.target), (node.args[0], other))
    total.replace_all_uses_with(new)
    graph.erase_node(total)
    _erase(graph, last, node)
    words.append("residual")
    return new


def _take_activation(graph: fx.Graph, module: nn.Module, node: fx.Node, layer: Any, words: list[str]) -> None:
    pair = _behind(node, module)
    if pair is None:
        return
    word = _word(pair[1], module)
    if word is None:
        return
    last, act = pair
    act.replace_all_uses_with(node)
    graph.erase_node(act)
    if last is not node:
        _erase(graph, last, next(iter(node.users)))
    layer.activation = word
    words.append(word)


def _erase(graph: fx.Graph, last: fx.Node, first: fx.Node) -> None:
    """Erase a chain of single readers, which nothing reads any more."""
    while True:
        before = last.args[0]
        graph.erase_node(last)
        if last is first or not isinstance(before, fx.Node):
            return
        last = before


def _changes_between(first: fx.Node, last: fx.Node, module: nn.Module) -> bool:
    """Whether something is changed in place between two nodes, so that the first may not be computed later."""
    node = first.next
    while node is not last:
        target = node.target
        method = node.op == "call_method" and str(target).endswith("_")
        function = node.op == "call_function" and (
            str(getattr(target, "__name__", "")).rstrip("_") != str(getattr(target, "__name__", ""))
            or getattr(target, "__name__", "") in ("iadd", "imul", "isub", "itruediv", "setitem")
            or bool(node.kwargs.get("inplace"))
        )
        inside = node.op == "call_module" and any(
            getattr(m, "inplace", False) for m in module.get_submodule(str(target)).modules()
        )
        if method or function or inside:
            return True
        node = node.next
    return False


def _reduce(self: nn.Module, protocol: Any) -> Any:
    return _revive, (type(self).openwork_base, dict(self.__dict__))  # type: ignore[attr-defined]


def _revive(base: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """A fused module of a pickle: its forward is generated again."""
    module = base.__new__(base)
    nn.Module.__setstate__(module, state)
    given = module.__dict__.pop("openwork_fused")
    apply(module, {"": given})
    return module


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    new = type(self).__new__(type(self))
    memo[id(self)] = new
    new.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return new
