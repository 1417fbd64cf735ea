"""The controls of an honest comparison: random masks with fair layer shares, and a small dense model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
STAGES = {"resnet8": 3, "resnet20": 3, "resnet18": 4, "resnet50": 4}
"""Zoo models whose ``width`` doubles from stage to stage, and whose ``widths`` names them all."""
NEAR = 0.9
"""The share of a method's parameters that a small dense model must have, to count as one of as many."""


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


class Small(NamedTuple):
    """The options of a narrower model and its parameters; ``finer`` where one factor for all widths was too coarse."""

    options: dict[str, Any]
    parameters: int
    finer: bool = False


def small_dense(
    model: str, options: Mapping[str, Any], input_shape: Sequence[int], classes: int, parameters: int
) -> Small | str:
    """The widest model with at most so many parameters; or why there is none.

    Depth and everything else stay as they are; all widths shrink by one factor. Where that leaves less than ``NEAR`` of
    the parameters, widths grow one by one from there, the one that shrank most first, as long as they fit. Where even
    that leaves fewer, the next larger model is taken if it is no further away: its few parameters more favour it, not
    the methods that it is a control of.

    Examples:
        >>> small_dense("mlp", {}, (1, 8, 8), 10, 3000)
        Small(options={'hidden': [28, 28]}, parameters=2922, finer=False)
        >>> small_dense("resnet8", {}, (1, 28, 28), 10, 4500)
        Small(options={'widths': [4, 7, 15]}, parameters=4436, finer=True)
    """
    known = {k: p.default for k, p in inspect.signature(ZOO[model]).parameters.items()} if model in ZOO else {}
    full = {**known, **options}
    if not _widest({k: v for k, v in full.items() if k in known}):
        kind = "the zoo model" if model in ZOO else "the model"
        return f"{kind} {model} has no width option"

    def size(narrow: Mapping[str, Any]) -> int:
        return _size(model, {**options, **narrow}, input_shape, classes)

    low, high = 0, _widest(full)
    while low < high:
        middle = (low + high + 1) // 2
        if size(_narrowed(full, middle)) <= parameters:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        return f"no width of {model} has {parameters:,} parameters or fewer"
    narrow = _narrowed(full, low)
    found = Small({**options, **narrow}, size(narrow))
    if found.parameters >= NEAR * parameters or low == _widest(full):
        return found
    top, grown = _each(model, full), _each(model, narrow)
    while (wider := next((w for w in _wider(grown, top) if size(w) <= parameters), None)) is not None:
        grown = wider
    over = min(_wider(grown, top), key=size, default=grown)
    if size(grown) < NEAR * parameters and NEAR * size(over) <= parameters:
        grown = over
    more = size(grown)
    return Small({**options, **grown}, more, True) if more > found.parameters else found


def _each(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The widths of a model one by one, also those that follow from others unless they are named."""
    told = {k: options[k] for k in WIDTHS if options.get(k) is not None}
    if model in STAGES:
        told = {"widths": told.get("widths") or [told["width"] << i for i in range(STAGES[model])]}
    return {"hidden": 4 * told["dim"], **told} if model == "vit" else told


def _wider(narrow: Mapping[str, Any], full: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every network with one width that is one larger, the one that shrank most first; heads stay."""

    def sizes(name: str, of: Mapping[str, Any]) -> list[int]:
        return [of[name]] if isinstance(of[name], int) else list(of[name])

    places = [(k, i) for k in narrow if k != "dim" for i in range(len(sizes(k, narrow)))]
    for k, i in sorted(places, key=lambda at: (sizes(at[0], narrow)[at[1]] / sizes(at[0], full)[at[1]], -at[1])):
        row = sizes(k, narrow)
        row[i] += 1
        falls = k == "widths" and row[i : i + 2] != sorted(row[i : i + 2])
        if row[i] <= sizes(k, full)[i] and not falls:
            yield {**narrow, k: row[0] if isinstance(narrow[k], int) else row}


def _size(model: str, options: Mapping[str, Any], input_shape: Sequence[int], classes: int) -> int:
    with torch.device("meta"):
        made: nn.Module = build_model(model, input_shape, classes, **options)
    return sum(p.numel() for p in made.parameters())
