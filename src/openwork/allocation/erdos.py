"""Erdos-Renyi(-Kernel) densities: layers with fewer connections per unit stay denser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openwork.allocation.bounds import bounded
from openwork.core.across import Across
from openwork.core.now import Now
from openwork.core.select import Rounding, count_kept
from openwork.core.shards import shape_of, total_of
from openwork.core.shares import apportioned
from openwork.errors import RecipeError
from openwork.schedules.shapes import check_density


def erk_densities(
    shapes: Mapping[str, tuple[int, ...]], density: float, power: float = 1.0, kernel: bool = True
) -> dict[str, float]:
    """Densities ``d_l = min(1, eps * p_l^power)`` whose weighted mean is exactly ``density``.

    ``p_l = (n_out + n_in + k_h + k_w) / (n_out n_in k_h k_w)``; without ``kernel`` the plain ER form of fully connected
    layers, ``(n_out + n_in) / (n_out n_in)``. Layers that would exceed 1 become dense and the rest is solved again.

    Examples:
        >>> d = erk_densities({"a": (16, 1, 3, 3), "b": (32, 16, 3, 3), "c": (64, 32, 3, 3), "d": (10, 64)}, 0.2)
        >>> [round(v, 4) for v in d.values()]
        [1.0, 0.299, 0.1412, 1.0]
    """
    check_density(density, "erk_densities")
    size = {n: _product(s) for n, s in shapes.items()}
    raw = {n: (sum(s) / size[n] if kernel else (s[0] + s[1]) / (s[0] * s[1])) ** power for n, s in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        rest = [n for n in shapes if n not in dense]
        budget = density * sum(size.values()) - sum(size[n] for n in dense)
        eps = budget / sum(raw[n] * size[n] for n in rest)
        top = max(raw[n] for n in rest)
        if eps * top <= 1:
            return {n: 1.0 if n in dense else eps * raw[n] for n in shapes}
        dense |= {n for n in rest if raw[n] == top}
    return dict.fromkeys(shapes, 1.0)


@dataclass(frozen=True)
class ErdosRenyi:
    """ERK (or ER) densities as unit counts; the total is exact, rounding goes to the largest remainders.

    ``at_least`` units stay in every partition.
    """

    sharded: ClassVar[bool] = True
    scored: ClassVar[bool] = False
    power: float = 1.0
    kernel: bool = True
    rounding: Rounding = "ceil"
    at_least: int = 1

    def __post_init__(self) -> None:
        count_kept(1.0, 1, self.rounding)
        if self.at_least < 0:
            raise RecipeError(f"ErdosRenyi: at_least must not be negative, got {self.at_least}")

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        if any(not isinstance(now.parts[n].scope(), Across | None) for n in scores):
            raise RecipeError(
                "ErdosRenyi: a structure with its own regions (N:M, per row) fixes its densities; use Uniform"
            )
        shapes = {n: shape_of(now.parts[n], now.weights) for n in scores}
        density = erk_densities(shapes, share, self.power, self.kernel)
        return counts_of("ErdosRenyi", now, density, share, self.rounding, self.at_least)


def counts_of(
    who: str, now: Now, density: Mapping[str, float], share: float, rounding: Rounding, at_least: int
) -> dict[str, int | Tensor]:
    """Densities of tensors as numbers of units whose sum is exact; rounding goes to the largest remainders."""
    units = {n: total_of(now.parts[n]) for n in density}
    # the densities average to `share` by parameters; with uneven units the unit total follows the same rule
    budget = count_kept(share, sum(units.values()), rounding)
    least = [min(at_least, n) for n in units.values()]
    exact = [density[n] * units[n] for n in density]
    counts = apportioned(exact, budget, least, list(units.values()))
    if sum(counts) != budget:
        raise RecipeError(f"{who}: {budget} units cannot be shared with at_least={at_least} in every tensor")
    return bounded(now, dict(zip(density, counts, strict=True)))


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
