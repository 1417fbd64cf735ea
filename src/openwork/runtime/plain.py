"""Whether a forward can be followed with stand-ins for its inputs and means the same afterwards."""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import ModuleType
from typing import Any

from torch import nn

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
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, ValueError, SyntaxError):
        return False
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if not parameters or any(p.kind is not named or p.default is not p.empty for p in parameters):
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


def _plain_call(called: ast.expr, module: nn.Module, known: dict[str, Any]) -> bool:
    if isinstance(called, ast.Name):
        return called.id in LOOPS or _of_torch(known.get(called.id))
    root = called
    while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
        root = root.func if isinstance(root, ast.Call) else root.value
    if not isinstance(root, ast.Name):
        return False
    if root.id == "self" and isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        own = getattr(module, called.attr, None)
        return own is None or isinstance(own, nn.Module) or called.attr in LOOK_UPS  # None: not called here
    found = known.get(root.id)
    return found is None or _of_torch(found)  # a local: a tensor, or a layer


def _of_torch(found: Any) -> bool:
    name = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
    return isinstance(name, str) and (name == "torch" or name.startswith("torch."))
