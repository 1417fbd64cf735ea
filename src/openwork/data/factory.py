"""From ``package.module:function`` to the function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from openwork.errors import OpenworkError


def import_factory(spec: str, error: type[OpenworkError]) -> Callable[..., Any]:
    """Import what a user named. The current folder is searched last, so an own file needs no installation.

    Raises:
        OpenworkError: of the given class; no such module, no such attribute, or not callable.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise error(f"{spec!r} must read package.module:function")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        name = missing.name or ""
        if module_name != name and not module_name.startswith(f"{name}."):
            raise error(f"{spec!r}: importing {module_name} failed: {missing}") from missing
        raise error(f"{spec!r}: there is no module {name!r}; run from its folder or install it") from None
    function: Any = module
    for part in attribute.split("."):
        if not hasattr(function, part):
            raise error(f"{spec!r}: {module_name} has no {attribute!r}")
        function = getattr(function, part)
    if not callable(function):
        raise error(f"{spec!r} must be callable, got {type(function).__name__}")
    return function


def call_factory(
    spec: str, options: Mapping[str, Any], offered: Mapping[str, Any], error: type[OpenworkError]
) -> tuple[Any, dict[str, Any]]:
    """Call what ``spec`` names with all options and those offered arguments that it has a parameter for.

    Returns:
        The result, and the arguments that were used.

    Raises:
        OpenworkError: of the given class; an option that the function does not take, or one it misses.
    """
    function = import_factory(spec, error)
    signature = inspect.signature(function)
    taken = {name: value for name, value in offered.items() if name in signature.parameters}
    arguments = {**taken, **options}
    try:
        signature.bind(**arguments)
    except TypeError as mismatch:
        raise error(f"{spec}{signature} cannot be called with {sorted(arguments)}: {mismatch}") from None
    return function(**arguments), arguments
