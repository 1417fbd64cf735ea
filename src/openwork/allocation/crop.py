"""Widths of a network from the densities its layers should have (PreCropping): a smaller dense network, no masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.allocation.bounds import bounded
from openwork.core.now import Now, Phase
from openwork.core.partition import Partition
from openwork.core.protocols import Rule
from openwork.core.select import count_kept
from openwork.core.stat import Stat
from openwork.core.views import MatrixView
from openwork.errors import RecipeError
from openwork.stats.work import LayerMacs
from openwork.structure.tiles import Tiles


def equal_numbers(sizes: Mapping[str, float], share: float) -> dict[str, float]:
    """Densities that maximise ``sum log p_l`` under ``sum n_l p_l <= share sum n_l``: ``p_l = min(1, c / n_l)``.

    Every layer keeps the same number ``c``, except layers that have fewer. It is what expected SynFlow scores of random
    masks ask for. ``sizes`` are parameters, or multiply-accumulates for a budget of these.

    Raises:
        RecipeError: a share outside (0, 1].

    Examples:
        >>> equal_numbers({"a": 100, "b": 1000, "c": 900}, 0.45)
        {'a': 1.0, 'b': 0.4, 'c': 0.4444444444444444}
    """
    if not 0 < share <= 1:
        raise RecipeError(f"equal_numbers: share must lie in (0, 1], got {share}")
    rest, left = share * sum(sizes.values()), len(sizes)
    number = math.inf
    for size in sorted(sizes.values()):
        number = rest / left
        if size > number:
            break
        rest, left, number = rest - size, left - 1, math.inf
    return {name: min(1.0, number / size) for name, size in sizes.items()}


def widths(exponents: Tensor, weights: Tensor, densities: Tensor) -> Tensor:
    """Width multipliers ``r`` [groups] in (0, 1] whose products come nearest to the densities of the layers.

    ``argmin sum_l n_l (sum_g e_lg log r_g - log p_l)^2`` with ``log r <= 0``, by an active set; of several solutions
    the smallest in norm.

    Args:
        exponents: ``e`` [layers, groups], how often a group lies along the axes of a layer's weight: 1 for one side.
        weights: ``n`` [layers].
        densities: ``p`` [layers].
    """
    root = weights.double().sqrt()
    matrix, wanted = exponents.double() * root[:, None], densities.double().log() * root
    full = torch.zeros(exponents.shape[1], dtype=torch.bool)  # groups that stay whole
    for _ in range(4 * len(full) + 4):
        found = torch.zeros(len(full), dtype=torch.float64)
        free = ~full
        if bool(free.any()):
            found[free] = torch.linalg.lstsq(matrix[:, free], wanted[:, None], driver="gelsd").solution[:, 0]
        above = found > 1e-12
        if bool(above.any()):
            full |= above
            continue
        pull = matrix.T @ (wanted - matrix @ found)  # negative: the fit would be better with a smaller width
        worst = torch.where(full, pull, torch.zeros_like(pull)).argmin()
        if float(pull[worst]) >= -1e-9 * float(wanted.abs().max() * root.max() + 1):
            break
        full[worst] = False
    return found.clamp(max=0.0).exp()


@dataclass(frozen=True)
class PreCrop:
    """Counts of units whose layers have the densities that a pruning method at initialisation wants.

    With ``source`` None the closed form of ``equal_numbers`` at the parameter density (``macs``: at the density of
    multiply-accumulates) that leaves the asked share of units. Otherwise ``source`` is a rule on single weights, asked
    for the square of the share of units, and all widths are then scaled alike. The total is exact; one unit stays in
    every group.
    """

    source: Rule | None = None
    macs: LayerMacs | None = None

    @property
    def needs(self) -> frozenset[Stat]:
        return (self.source.needs if self.source else frozenset()) | (
            frozenset({self.macs}) if self.macs else frozenset()
        )

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        names = list(scores)
        for name in names:
            if now.parts[name].scope() is not None:
                raise RecipeError(f"{name}: PreCrop gives layers unequal shares, but the structure fixes them")
        layers, exponents = _layers(now, names)
        units = [now.parts[n].n_units for n in names]
        least = [min(u, max(1, getattr(now.parts[n], "at_least", 0))) for n, u in zip(names, units, strict=True)]
        budget = count_kept(share, sum(units))
        if sum(least) > budget:
            raise RecipeError(
                f"PreCrop: one unit in each of {len(names)} groups needs {sum(least)} units, but {budget} of "
                f"{sum(units)} may stay; the least share is {sum(least) / sum(units):.4g}"
            )
        sizes = {m: float(now.weights[m].numel()) for m in layers}
        if self.macs is not None:
            sizes = {m: float(now[self.macs][m]) for m in layers}
        weights = torch.tensor([sizes[m] for m in layers])

        def widths_at(density: Mapping[str, float]) -> list[float]:
            return widths(exponents, weights, torch.tensor([density[m] for m in layers])).tolist()

        if self.source is not None:
            wide = widths_at(_scored(self.source, now, layers, share**2))
        else:
            low, high = 0.0, 1.0
            for _ in range(50):
                middle = (low + high) / 2
                wide = widths_at(equal_numbers(sizes, middle))
                low, high = (low, middle) if _total(wide, units) > budget else (middle, high)
        counts = dict(zip(names, _counts(wide, units, least, budget), strict=True))
        return bounded(now, counts)


def _layers(now: Now, names: Sequence[str]) -> tuple[list[str], Tensor]:
    """The weights along whose axes units lie, and how often each group does ``[layers, groups]``."""
    found: dict[str, dict[int, float]] = {}
    for at, name in enumerate(names):
        part = now.parts[name]
        for member, often in _often(part, now).items():
            found.setdefault(member, {})[at] = often
    layers = [m for m in found if now.weights[m].ndim > 1]
    exponents = torch.zeros(len(layers), len(names), dtype=torch.float64)
    for row, member in enumerate(layers):
        for at, often in found[member].items():
            exponents[row, at] = often
    return layers, exponents


def _often(part: Partition, now: Now) -> dict[str, float]:
    sites = getattr(part, "sites", None)
    if sites is None:
        return dict.fromkeys(part.members, 1.0)
    found: dict[str, float] = {}
    for site in sites:  # a group that fills part of an axis (concat) changes its length in proportion
        found[site.tensor] = found.get(site.tensor, 0.0) + float((site.labels >= 0).double().mean())
    return found


def _scored(source: Rule, now: Now, layers: Sequence[str], share: float) -> dict[str, float]:
    """The densities that a rule on single weights gives to the layers."""
    parts: dict[str, Partition] = {}
    for m in layers:
        shape = tuple(now.weights[m].shape)
        parts[m] = Tiles(m, MatrixView(shape, tuple(range(len(shape))), (1, shape[0], now.weights[m][0].numel()), 1))
    alive = {m: torch.ones(p.n_units, dtype=torch.bool, device=now.weights[m].device) for m, p in parts.items()}
    situation = Now(parts, alive, now.weights, now.stats, now.grads, {}, now.step, now.phase, now.rng)
    units = source.update(situation, Phase(share, True), source.init(situation)).units
    return {m: max(float(units[m].double().mean()), 1 / units[m].numel()) for m in layers}


def _total(wide: Sequence[float], units: Sequence[int]) -> float:
    return sum(r * n for r, n in zip(wide, units, strict=True))


def _counts(wide: Sequence[float], units: Sequence[int], least: Sequence[int], budget: int) -> list[int]:
    """Widths times one common factor, as whole numbers that add up to the budget."""
    low, high = 0.0, max(n / (r * n) for r, n in zip(wide, units, strict=True))
    for _ in range(60):
        factor = (low + high) / 2
        exact = [max(k, min(n, r * factor * n)) for r, n, k in zip(wide, units, least, strict=True)]
        low, high = (low, factor) if sum(exact) > budget else (factor, high)
    counts = [max(k, int(x + 1e-9)) for x, k in zip(exact, least, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    while sum(counts) != budget:
        step = 1 if sum(counts) < budget else -1
        for i in order[::step]:
            if sum(counts) != budget and least[i] <= counts[i] + step <= units[i]:
                counts[i] += step
    return counts
