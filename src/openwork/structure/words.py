"""Words -> structures: how a command line or a suite file names them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from openwork.core.protocols import Structure
from openwork.errors import RecipeError, did_you_mean
from openwork.structure.coupling import channels, experts, heads, hidden, vocabulary
from openwork.structure.depth import layers
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
COUPLED = {
    "channels": channels, "heads": heads, "hidden": hidden, "experts": experts, "layers": layers,
    "vocabulary": vocabulary,
}  # fmt: skip
"""Structures that follow the graph of a model: they need an example of its input, and may name a multiple."""
FORMS = ", ".join([*(form for _, _, form in STRUCTURES.values()), *(f"{word}[:MULTIPLE]" for word in COUPLED)])


def is_coupled(text: str) -> bool:
    """Whether a word names a structure that needs an example of the model's input.

    Raises:
        RecipeError: a coupled word with something else than a multiple behind it.
    """
    word, _, rest = text.partition(":")
    if word in COUPLED and rest and not (rest.isdigit() and int(rest) > 0):
        raise RecipeError(f"structure {text!r} must read {word} or {word}:MULTIPLE")
    return word in COUPLED


def structure_of(text: str, example: Any = None) -> Structure:
    """``element``, ``block:8x8``, ``nm:2:4``, ``group:16``, ``channels``, ``channels:8``, ...

    Args:
        text: a word with numbers.
        example: what the model is called with, for coupled structures.

    Raises:
        RecipeError: unknown word or wrong numbers (the known forms are listed), or a coupled structure without example.

    Examples:
        >>> structure_of("block:8x4")
        Block(rows=8, cols=4)
    """
    word, _, rest = text.partition(":")
    if is_coupled(text):
        if example is None:
            raise RecipeError(f"{text} follows the graph of a model and needs an example of its input")
        return COUPLED[word](example, multiple=int(rest or 1))
    if word not in STRUCTURES:
        raise RecipeError(f"unknown structure {text!r}; {did_you_mean(word, [*STRUCTURES, *COUPLED])} (forms: {FORMS})")
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
