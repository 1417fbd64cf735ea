"""Words of the command line -> structures and values."""

from __future__ import annotations

import json
from typing import Any

from openwork.core.protocols import Structure
from openwork.errors import RecipeError, did_you_mean
from openwork.structure import NM, Block, Column, Element, Filter, GroupOf, Kernel, Row

STRUCTURES = {
    "element": (Element, 0, "element"),
    "row": (Row, 0, "row"),
    "column": (Column, 0, "column"),
    "filter": (Filter, 0, "filter"),
    "kernel": (Kernel, 0, "kernel"),
    "block": (Block, 2, "block:ROWSxCOLS"),
    "nm": (NM, 2, "nm:KEEP:OF"),
    "group": (GroupOf, 1, "group:SIZE"),
}
FORMS = ", ".join(form for _, _, form in STRUCTURES.values())


def structure_of(text: str) -> Structure:
    """``element``, ``block:8x8``, ``nm:2:4``, ``group:16``, ...

    Raises:
        RecipeError: unknown word or wrong numbers; the known forms are listed.

    Examples:
        >>> structure_of("block:8x4")
        Block(rows=8, cols=4)
    """
    word, _, rest = text.partition(":")
    if word not in STRUCTURES:
        raise RecipeError(f"unknown structure {text!r}; {did_you_mean(word, STRUCTURES)} (forms: {FORMS})")
    make, count, form = STRUCTURES[word]
    numbers = [n for n in rest.replace("x", ":").split(":") if n]
    if len(numbers) != count or not all(n.isdigit() for n in numbers):
        raise RecipeError(f"structure {text!r} must read {form}")
    return make(*map(int, numbers))


def options_of(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are read as JSON when they are JSON, else as text.

    Examples:
        >>> options_of(["radius=1.2", "path=exp", "clamp=true"])
        {'radius': 1.2, 'path': 'exp', 'clamp': True}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RecipeError(f"option {pair!r} must read key=value")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
        if isinstance(options[key], list):
            options[key] = tuple(options[key])
    return options
