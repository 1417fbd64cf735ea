"""Values against annotations: whether one fits, how a type is called in an error, and options read by a signature."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from openwork.errors import RecipeError

LARGEST = 2**53
"""The size of a number that a recipe may hold."""
ROOMS = {
    "Structure": "structure",
    "Criterion": "criteria",
    "Allocation": "allocation",
    "Schedule": "schedules",
    "Relaxation": "relax",
    "Fraction": "rules",
    "Solver": "rules",
}
"""Where the kinds of each protocol live; some protocols have only ``__call__``, so members do not tell them apart."""
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words for booleans, in any case."""
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a word",
    NoneType: "null",
}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: plain types, Literal, unions, tuples, classes, and our protocols."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin in (Union, UnionType):
        return any(fits(value, a) for a in args)
    if origin is tuple:
        of = args[:1] * len(value) if isinstance(value, tuple) and args[1:] == (...,) else args
        return isinstance(value, tuple) and len(value) == len(of) and all(map(fits, value, of))
    if hint in (int, float):
        plain = isinstance(value, int | hint) and not isinstance(value, bool)
        return plain and -LARGEST <= value <= LARGEST  # NaN fails here as well
    if getattr(hint, "_is_protocol", False):
        members = [n for n in vars(hint) if n == "__call__" or not n.startswith("_")]
        room = type(value).__module__.removeprefix("openwork.").split(".")[0]
        return ROOMS[hint.__name__] == room and all(hasattr(value, m) for m in members)
    return isinstance(value, hint)


def typed(owner: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options from files and the command line as the signature of a function or the fields of a class want them.

    Where a boolean is wanted, ``yes``, ``no``, ``on``, ``off``, ``true`` and ``false`` are read in any case; where a
    number is wanted, a word such as ``1e-5`` is; lists become tuples. Names that ``maker`` does not annotate pass as
    they are: that is for ``maker`` to refuse.

    Raises:
        RecipeError: a value whose type does not fit its annotation.

    Examples:
        >>> def make(update: bool = True, damp: float = 1e-5): ...
        >>> typed("make", make, {"update": "No", "damp": "1e-3"})
        {'update': False, 'damp': 0.001}
    """
    hints, read = get_type_hints(maker), dict(options)
    for name in (n for n in options if n in hints):
        read[name] = _read(options[name], hints[name])
        if not fits(read[name], hints[name]):
            raise RecipeError(f"{owner}: option {name} must be {_named(hints[name])}, got {short(options[name])}")
    return read


def switched(owner: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``typed`` for booleans alone, where ``maker`` checks the rest itself: ``no`` must not switch something on.

    Raises:
        RecipeError: a value for a boolean that is none.
    """
    switches = [n for n, hint in get_type_hints(maker).items() if hint is bool and n in options]
    return {**options, **typed(owner, maker, {n: options[n] for n in switches})}


def short(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _read(value: Any, hint: Any) -> Any:
    """The value behind a word, a list or a number of NumPy, where the annotation has a place for it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Real) and not isinstance(value, int | float):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, str) and str not in kinds and not fits(value, hint):
        if bool in kinds and value.lower() in WORDS:
            return WORDS[value.lower()]
        if float in kinds and re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", value):  # YAML reads 1e-5 as a word
            return float(value)
    return value


def _named(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(map(repr, args[:-1])), repr(args[-1])]))
    if origin in (Union, UnionType):
        return ", or ".join(map(_named, args))
    if origin is tuple:
        kinds = list(dict.fromkeys(_named(a) for a in args if a is not ...))
        return f"a list of {'any length' if args[-1] is ... else len(args)}, each {' or '.join(kinds)}"
    return _NAMES.get(hint) or f"a {hint.__name__}"
