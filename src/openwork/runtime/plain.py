"""Whether a forward can be followed with stand-ins for its inputs and means the same afterwards."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

LOOPS = {"range", "len", "zip", "enumerate"}
LOOK_UPS = {"get_submodule"}
QUESTIONS = (ast.Is, ast.IsNot, ast.In, ast.NotIn)


def is_plain(module: nn.Module) -> bool:
    """Whether the forward of a module is plain enough to be rewritten from its trace.

    A trace cannot see a question like ``mask is None``, a stored attribute or a context manager. So every input must be
    required, and the source may only call layers of its own, torch, and methods of tensors. What is unusual says no.
    """
    forward = type(module).forward
    if "forward" in vars(module) or type(module).__module__.startswith("torch."):
        return False
    if not inspect.isfunction(forward) or hasattr(forward, "__wrapped__"):
        return False
    try:
        owner, *parameters = inspect.signature(forward).parameters.values()
        tree = _source(forward)
    except (OSError, TypeError, ValueError, SyntaxError):
        return False
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if (
        owner.name != "self"
        or not parameters
        or any(p.kind is not named or p.default is not p.empty for p in parameters)
    ):
        return False
    known = {**vars(__import__("builtins")), **forward.__globals__}
    return all(_plain_node(node, module, known) for node in ast.walk(tree))


def _plain_node(node: ast.AST, module: nn.Module, known: dict[str, Any]) -> bool:
    if isinstance(node, ast.With | ast.Try | ast.Global | ast.Nonlocal | ast.Delete | ast.Lambda | ast.ClassDef):
        return False
    if isinstance(node, ast.Compare) and any(isinstance(op, QUESTIONS) for op in node.ops):
        asked = node.left  # whether the module has something, not whether it was given
        return isinstance(asked, ast.Attribute) and isinstance(asked.value, ast.Name) and asked.value.id == "self"
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        into = node.targets if isinstance(node, ast.Assign) else [node.target]
        return not any(isinstance(t, ast.Attribute | ast.Subscript) for t in into)
    return not isinstance(node, ast.Call) or _plain_call(node.func, module, known)


def frozen(module: nn.Module) -> frozenset[str]:
    """Attributes that a plain forward reads and that its trace holds as constants: what is no module and no tensor."""
    nodes = ast.walk(_source(type(module).forward))
    read = {n.attr for n in nodes if isinstance(n, ast.Attribute) and _is_self(n.value)}
    return frozenset(n for n in read - {"training"} if not _lives(getattr(module, n, _lives)))


def _source(forward: Callable[..., Any]) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(forward)))


def _lives(value: Any) -> bool:
    """Whether a fused forward still reads it when it runs; methods are the class's."""
    return isinstance(value, nn.Module | Tensor) or callable(value)


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _plain_call(called: ast.expr, module: nn.Module, known: dict[str, Any]) -> bool:
    if isinstance(called, ast.Name):
        return called.id in LOOPS or _of_torch(known.get(called.id))
    root, computed = called, False
    while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
        computed |= isinstance(root, ast.Call)
        root = root.func if isinstance(root, ast.Call) else root.value
    if not isinstance(root, ast.Name):
        return False
    if root.id == "self" and not computed:  # else a method of what a layer computed, and the layer is looked at itself
        own = _owned(called, module)
        return own is None or isinstance(own, nn.Module) or _harmless(called, module)  # None: not called here
    found = known.get(root.id)
    return found is None or _of_torch(found)  # a local: a tensor, or a layer


def _harmless(called: ast.expr, module: nn.Module) -> bool:
    """Whether a method of the module's own things is one that looks a layer up, or one of a tensor."""
    if not isinstance(called, ast.Attribute):
        return False
    owner = _owned(called.value, module)
    return isinstance(owner, Tensor) or (isinstance(owner, nn.Module) and called.attr in LOOK_UPS)


def _owned(node: ast.expr, module: nn.Module) -> Any:
    """What ``self.a.b[i]`` is in the module; any layer of a container stands for the one that is looked up."""
    if isinstance(node, ast.Name):
        return module
    if isinstance(node, ast.Attribute):
        owner = _owned(node.value, module)
        return None if owner is None else getattr(owner, node.attr, None)
    owner = _owned(node.value, module) if isinstance(node, ast.Subscript) else None
    return next(iter(owner.children()), None) if isinstance(owner, nn.Module) else owner


def _of_torch(found: Any) -> bool:
    name = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
    return isinstance(name, str) and (name == "torch" or name.startswith("torch."))
