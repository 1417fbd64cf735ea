"""The controls of an honest comparison: random masks with fair layer shares, and a small dense model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from openwork.allocation import Borrowed
from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Random
from openwork.rules.given import Given, kept_share
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.zoo import build_model
from openwork.zoo.registry import ZOO


def random_like_global(density: float, structure: Structure, where: Select) -> Recipe:
    """A random mask with the layer shares of global magnitude pruning: it shares the allocation, not the choice."""
    return Recipe("random", structure, TopK(Random(), Borrowed()), OneShot(density), None, where)


def from_mask(mask: str, shuffled: bool, structure: Structure, where: Select) -> Recipe:
    """The mask of another run, as it is or shuffled inside each layer; see ``rules.given``."""
    share = structure.density or kept_share(mask)
    return Recipe(
        "mask shuffled" if shuffled else "mask", structure, Given(mask, shuffled), OneShot(share), None, where
    )


WIDTHS = ("width", "widths", "channels", "hidden", "dim")
"""The options of zoo models that hold widths."""


def _widest(options: Mapping[str, Any]) -> int:
    """How many steps of width a model has: 0 when it has no such option."""
    if "dim" in options:
        return int(options["dim"] // options["heads"])
    sizes = [options[k] for k in WIDTHS if options.get(k) is not None]
    return max((s if isinstance(s, int) else max(s, default=0) for s in sizes), default=0)


def _narrowed(options: Mapping[str, Any], k: int) -> dict[str, Any]:
    """All widths times k / widest, at least 1; heads must divide a width, so it shrinks by whole heads."""
    top, narrow = _widest(options), {}
    for name in WIDTHS:
        size = options.get(name)
        if name == "dim" and size is not None:
            narrow[name] = options["heads"] * k
        elif isinstance(size, int):
            narrow[name] = max(1, round(size * k / top))
        elif size is not None:
            narrow[name] = [max(1, round(s * k / top)) for s in size]
    return narrow


def small_dense(
    model: str, options: Mapping[str, Any], input_shape: Sequence[int], classes: int, parameters: int
) -> tuple[dict[str, Any], int] | str:
    """The options of the widest model with at most so many parameters and its count; or why there is none.

    Depth and everything else stay as they are; all widths shrink by one factor.

    Examples:
        >>> small_dense("mlp", {}, (1, 8, 8), 10, 3000)
        ({'hidden': [28, 28]}, 2922)
    """
    known = {k: p.default for k, p in inspect.signature(ZOO[model]).parameters.items()} if model in ZOO else {}
    full = {**known, **options}
    if not _widest({k: v for k, v in full.items() if k in known}):
        kind = "the zoo model" if model in ZOO else "the model"
        return f"{kind} {model} has no width option"
    low, high = 0, _widest(full)
    while low < high:
        middle = (low + high + 1) // 2
        if _size(model, {**options, **_narrowed(full, middle)}, input_shape, classes) <= parameters:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        return f"no width of {model} has {parameters:,} parameters or fewer"
    found = {**options, **_narrowed(full, low)}
    return found, _size(model, found, input_shape, classes)


def _size(model: str, options: Mapping[str, Any], input_shape: Sequence[int], classes: int) -> int:
    with torch.device("meta"):
        made: nn.Module = build_model(model, input_shape, classes, **options)
    return sum(p.numel() for p in made.parameters())
