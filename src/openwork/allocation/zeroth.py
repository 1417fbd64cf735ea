"""Layer shares from forward-only gradient norms (ECoFLaP), and counts that add up exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.core.across import Across
from openwork.core.now import Now
from openwork.core.select import count_kept
from openwork.core.stat import Stat
from openwork.errors import RecipeError
from openwork.stats.zeroth import ZerothNorms


def counts_by_score(scores: Sequence[float], sizes: Sequence[int], keep: int, floor_share: float) -> list[int]:
    """``keep`` entries over groups: a floor for each, the rest in proportion to the scores, full groups passing on.

    Args:
        scores: one per group, not negative; all zero gives equal shares.
        sizes: entries per group.
        keep: in all.
        floor_share: share of every group that stays whatever its score.

    Raises:
        RecipeError: the floors alone need more than ``keep``.
    """
    counts = [min(n, math.ceil(n * floor_share - 1e-9)) for n in sizes]
    if sum(counts) > keep:
        raise RecipeError(
            f"a floor of {floor_share:g} in every group needs {sum(counts)} entries, but {keep} may stay; raise p_max"
        )
    weights = list(scores) if any(s > 0 for s in scores) else [float(n) for n in sizes]
    while sum(counts) < keep:
        rest, total = keep - sum(counts), sum(weights)
        if total <= 0:  # every group with a score is full
            weights = [float(n - k) for n, k in zip(sizes, counts, strict=True)]
            total = sum(weights)
        for i, n in enumerate(sizes):
            counts[i] = min(n, counts[i] + math.ceil(weights[i] / total * rest))
            weights[i] = 0.0 if counts[i] == n else weights[i]
    surplus = sum(counts) - keep
    for i in sorted(range(len(counts)), key=lambda i: -counts[i]):  # rounding up gave a few too many
        taken = min(surplus, max(0, counts[i] - math.ceil(sizes[i] * floor_share - 1e-9)))
        counts[i] -= taken
        surplus -= taken
    return counts


@dataclass(frozen=True)
class ZerothOrder:
    """ECoFLaP: a tensor keeps in proportion to its estimated gradient norm, and at least ``1 - p_max`` of itself.

    ``p_max`` None is the asked sparsity plus 0.1.
    """

    norms: ZerothNorms = field(default_factory=ZerothNorms)
    p_max: float | None = None

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.norms})

    def shares(self, now: Now, names: Sequence[str], share: float) -> dict[str, int]:
        """Tensor -> kept units."""
        sizes = [now.parts[n].n_units for n in names]
        most = min(1.0, 1 - share + 0.1) if self.p_max is None else self.p_max
        found = now[self.norms]
        keep = count_kept(share, sum(sizes))
        return dict(zip(names, counts_by_score([found[n] for n in names], sizes, keep, 1 - most), strict=True))

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        counts: dict[str, int | Tensor] = {}
        for name, keep in self.shares(now, list(scores), share).items():
            scope = now.parts[name].scope()
            if now.parts[name].quota is not None or isinstance(scope, Tensor | Across):
                raise RecipeError(f"{name}: ZerothOrder gives layers unequal shares, but the structure fixes them")
            if scope is None:
                counts[name] = keep
                continue
            regions = now.parts[name].n_units // scope
            base, more = divmod(keep, regions)
            counts[name] = torch.tensor([base + (i < more) for i in range(regions)], dtype=torch.int64)
        return counts
