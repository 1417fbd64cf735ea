"""Words of the command line -> values; structures are read by ``openwork.structure.words``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from openwork.core.recipe import Recipe
from openwork.core.targets import Select
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


def selection_of(args: argparse.Namespace) -> Select:
    """The parameters that ``--include``, ``--exclude`` and ``--min-units`` name."""
    return Select(tuple(args.include), tuple(args.exclude), 1 if args.min_units is None else args.min_units)


def recipe_file_of(args: argparse.Namespace) -> Recipe | None:
    """The recipe of ``--recipe``, beside which options that it would not heed are refused; None without one.

    Raises:
        FileError: no such file.
        RecipeError: it holds no recipe, or such an option stands beside it.
    """
    if not args.recipe:
        return None
    parts = ("method", "density", "structure", "options", "include", "exclude", "min_units")
    given = [p for p in parts if getattr(args, p) is not None and getattr(args, p) != []]
    if given:
        words = ", ".join(f"--{'set' if p == 'options' else p.replace('_', '-')}" for p in given)
        raise RecipeError(f"--recipe is a whole recipe; leave out {words}, or change the file")
    return Recipe.load(args.recipe)


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
