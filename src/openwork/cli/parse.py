"""Words of the command line -> values; structures are read by ``openwork.structure.words``."""

from __future__ import annotations

import json
from typing import Any

from openwork.errors import RecipeError
from openwork.structure.words import FORMS as FORMS
from openwork.structure.words import structure_of as structure_of


def options_of(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are read as JSON when they are JSON, else as text.

    Which words stand for booleans, the signature that they meet decides: see ``core.annotations.typed``.

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


def refuse_pace(seconds: float) -> None:
    """Refuse a negative or missing time between checkpoints.

    Raises:
        RecipeError: it is one.
    """
    if not seconds >= 0:
        raise RecipeError(f"--save-every must be at least 0 seconds, got {seconds:g}")


def use_threads(count: int | None) -> None:
    """Give torch so many threads; None leaves what it uses.

    Raises:
        RecipeError: less than one.
    """
    import torch

    if count is None:
        return
    if count < 1:
        raise RecipeError(f"--threads must be at least 1, got {count}")
    torch.set_num_threads(count)
