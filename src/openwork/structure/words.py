"""Words -> structures: how a command line or a suite file names them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from openwork.core.protocols import Structure
from openwork.errors import RecipeError, did_you_mean
from openwork.structure.shapes import NM, Block, Column, Element, Filter, GroupOf, InputChannel, Kernel, Row

STRUCTURES = {
    "element": (Element, 0, "element"),
    "row": (Row, 0, "row"),
    "column": (Column, 0, "column"),
    "filter": (Filter, 0, "filter"),
    "kernel": (Kernel, 0, "kernel"),
    "channel": (InputChannel, 0, "channel"),
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


def word_of(structure: Structure) -> str:
    """The word that ``structure_of`` reads as this structure; for others their own text.

    Examples:
        >>> word_of(Block(8, 4)), word_of(NM(2, 4)), word_of(Element("row"))
        ('block:8x4', 'nm:2:4', "Element(per='row')")
    """
    for word, (make, count, _) in STRUCTURES.items():
        if type(structure) is make:
            shape: Any = structure
            values = [getattr(shape, f.name) for f in fields(shape)][:count]
            text = ":".join([word, ("x" if make is Block else ":").join(map(str, values))] if count else [word])
            return text if structure_of(text) == structure else str(structure)
    return str(structure)
