"""Layer shares where the first and the last tensor have densities of their own: ERK+ and uniform+."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openwork.allocation.erdos import counts_of, erk_densities
from openwork.core.across import Across
from openwork.core.now import Now
from openwork.core.select import Rounding, count_kept
from openwork.core.shards import shape_of
from openwork.errors import RecipeError
from openwork.schedules.shapes import check_density


def fixed_densities(
    shapes: Mapping[str, tuple[int, ...]], density: float, fixed: Mapping[str, float], power: float = 1.0
) -> dict[str, float]:
    """Densities whose weighted mean is exactly ``density``: those of ``fixed``, and ERK among the others.

    ``power=0`` gives all others the same density.

    Raises:
        RecipeError: the fixed tensors alone are above the budget, or the others cannot fill it.

    Examples:
        >>> shapes = {"a": (16, 1, 3, 3), "b": (32, 16, 3, 3), "c": (64, 32, 3, 3), "d": (10, 64)}
        >>> [round(v, 4) for v in fixed_densities(shapes, 0.2, {"d": 1.0}).values()]
        [1.0, 0.299, 0.1412, 1.0]
        >>> [round(v, 3) for v in fixed_densities(shapes, 0.1, {"a": 1.0, "d": 0.2}, power=0.0).values()]
        [1.0, 0.092, 0.092, 0.2]
    """
    check_density(density, "fixed_densities")
    size = {n: math.prod(s) for n, s in shapes.items()}
    rest = {n: s for n, s in shapes.items() if n not in fixed}
    total, free = sum(size.values()), sum(size[n] for n in rest)
    taken = sum(fixed[n] * size[n] for n in fixed)
    left = density * total - taken
    if not rest or left <= 0 or left > free * (1 + 1e-12):
        raise RecipeError(
            f"density {density:g} cannot be met: the tensors of fixed density alone are {taken / total:.4g} of the "
            f"model, and with all others dense it is {(taken + free) / total:.4g}; take a density between the two, "
            "or other shares"
        )
    others = erk_densities(rest, min(1.0, left / free), power)
    return {n: fixed[n] if n in fixed else others[n] for n in shapes}


@dataclass(frozen=True)
class FixedEnds:
    """ERK among the tensors between the ends; ``first`` and ``last`` are densities of the ends, None leaves one to ERK.

    ``FixedEnds(last=1.0)`` is ERK+, ``FixedEnds(1.0, 0.2, power=0.0)`` uniform+ below a density of 0.2. The order is
    that of the model's parameters. The total is exact.
    """

    sharded: ClassVar[bool] = True
    scored: ClassVar[bool] = False
    first: float | None = None
    last: float | None = None
    power: float = 1.0
    rounding: Rounding = "ceil"
    at_least: int = 1

    def __post_init__(self) -> None:
        count_kept(1.0, 1, self.rounding)
        for end in (self.first, self.last):
            if end is not None:
                check_density(end, "FixedEnds")
        if self.at_least < 0:
            raise RecipeError(f"FixedEnds: at_least must not be negative, got {self.at_least}")

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        if any(not isinstance(now.parts[n].scope(), Across | None) for n in scores):
            raise RecipeError("FixedEnds: a structure with its own regions fixes its densities; use Uniform")
        shapes = {n: shape_of(now.parts[n], now.weights) for n in scores}
        names = list(shapes)
        ends = {names[0]: self.first, names[-1]: self.last}
        fixed = {n: d for n, d in ends.items() if d is not None}
        density = fixed_densities(shapes, share, fixed, self.power)
        return counts_of("FixedEnds", now, density, share, self.rounding, self.at_least)
