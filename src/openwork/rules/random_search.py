"""Random search over masks: draw many at one density, keep the one under which the network loses least."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from openwork.allocation import Uniform
from openwork.core.across import Across
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Allocation, Rule
from openwork.core.select import keep_top
from openwork.core.shards import total_of
from openwork.core.stat import Stat
from openwork.criteria import Random
from openwork.errors import DivergedError, RecipeError
from openwork.stats.mask_loss import LossAtMasks

Units = dict[str, Tensor]


@dataclass(frozen=True)
class RandomSearch(Rule):
    """The best of ``draws`` random choices of units with exact counts, by the loss at the present weights.

    Where there are no more choices than draws, all are tried. Losses that are not finite are counted and passed over.
    The log holds every loss, in the order of the draws, so that the value of a smaller budget can be told
    (``metrics.expected_best``).
    """

    loss: LossAtMasks = field(default_factory=LossAtMasks)
    allocation: Allocation = field(default_factory=Uniform)
    draws: int = 500

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise RecipeError(f"RandomSearch: draws must be at least 1, got {self.draws}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return frozenset({self.loss})

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        return getattr(self.allocation, "sharded", False)

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        chosen: Units | None = None
        losses: list[float] = []
        least = math.inf
        for units in self._choices(now, phase.share):
            losses.append(float(replace(now, units=units).at_masks(self.loss)))
            if losses[-1] < least:
                chosen, least = units, losses[-1]
        if chosen is None:
            raise DivergedError(
                f"RandomSearch: none of {len(losses)} masks has a finite loss; check the weights and the loss"
            )
        bad = sum(not math.isfinite(loss) for loss in losses)
        told = {"losses": losses, "best": losses.index(least), "not_finite": bad}
        return Update(chosen, state=state, log={"search": told})

    def _choices(self, now: Now, share: float) -> Iterator[Units]:
        for draw in range(self.draws):
            scores = {n: Random()(p, now) for n, p in now.parts.items()}
            kept = self.allocation(now, scores, share)
            if draw == 0 and self._few(now, kept):
                yield from self._every(now, kept)
                return
            yield {n: keep_top(scores[n], kept[n], p.scope()) for n, p in now.parts.items()}

    def _few(self, now: Now, kept: dict[str, int | Tensor]) -> bool:
        """Whether there are no more choices than draws."""
        total = 1
        for name, part in now.parts.items():
            keep = kept[name]
            size = total_of(part)
            if not isinstance(keep, int) or not isinstance(part.scope(), Across | None):
                return False  # units with regions: there may be few, but nobody counts them
            if 0 < keep < size and size > self.draws:
                return False  # at least as many choices as units
            total *= math.comb(size, keep)
            if total > self.draws:
                return False
        return True

    @staticmethod
    def _every(now: Now, kept: dict[str, int | Tensor]) -> Iterator[Units]:
        names = list(now.parts)
        for some in product(*(combinations(range(total_of(now.parts[n])), int(kept[n])) for n in names)):
            units = {}
            for name, alive in zip(names, some, strict=True):
                chosen = torch.zeros(total_of(now.parts[name]), dtype=torch.bool, device=now.units[name].device)
                chosen[list(alive)] = True
                across = now.parts[name].scope()
                first = across.first if isinstance(across, Across) else 0
                units[name] = chosen[first : first + now.parts[name].n_units]
            yield units
