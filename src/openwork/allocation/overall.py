"""One ranking over all partitions, with an optional floor for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation.bounds import bounded
from openwork.core.across import Across
from openwork.core.now import Now
from openwork.core.select import Rounding, count_kept, keep_top
from openwork.core.select_sharded import keep_top_sharded
from openwork.core.shards import across_of, summed_over, total_of
from openwork.errors import RecipeError


@dataclass(frozen=True)
class Global:
    """The units with the largest scores of the whole model stay; ties go to the earlier tensor, then the lower index.

    ``floor`` units of every partition are kept unconditionally (fewer where it has fewer), the rest of the budget
    goes to the best of the others; the total is exact. ``floor_share`` gives the floor as a share of *all* units
    (Global MP's MT rule uses 0.0005).
    """

    sharded: ClassVar[bool] = True
    rounding: Rounding = "ceil"
    floor: int = 0
    floor_share: float = 0.0

    def __post_init__(self) -> None:
        count_kept(1.0, 1, self.rounding)
        if self.floor < 0 or not 0 <= self.floor_share < 1:
            raise RecipeError(
                f"Global: floor must be >= 0 and floor_share in [0, 1), got {self.floor} and {self.floor_share}"
            )

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        for name in scores:
            if not isinstance(now.parts[name].scope(), Across | None):
                raise RecipeError(
                    f"{name}: a structure with its own regions (N:M, per row) cannot be ranked over the whole model; "
                    "use the layer-wise scope"
                )
        total = sum(total_of(now.parts[n]) for n in scores)
        budget = count_kept(share, total, self.rounding)
        floor = max(self.floor, int(self.floor_share * total))
        floors = {n: min(max(floor, getattr(now.parts[n], "at_least", 0)), total_of(now.parts[n])) for n in scores}
        if sum(floors.values()) > budget:
            raise RecipeError(
                f"Global: a floor of {floor} units in each of {len(scores)} tensors needs "
                f"{sum(floors.values())} units, but the "
                f"budget is {budget} of {total}; lower the floor or raise the density"
            )
        lifted = {n: self._lifted(s, floors[n], now.parts[n].scope()) for n, s in scores.items()}
        across = across_of(now.parts)
        if across is None:
            alive = keep_top(torch.cat([*lifted.values()]), budget).split([*map(len, scores.values())])
        else:
            wide = torch.float64 if any(s.dtype == torch.float64 for s in lifted.values()) else torch.float32
            pieces = [s.to(wide) for s in lifted.values()]
            alive = tuple(keep_top_sharded(pieces, budget, across.group, across.traffic))
        counts = {n: int(part.sum()) for n, part in zip(scores, alive, strict=True)}
        return bounded(now, dict(summed_over(now.parts, counts)))

    @staticmethod
    def _lifted(scores: Tensor, floor: int, scope: int | Tensor | Across | None) -> Tensor:
        lifted = scores if scores.is_floating_point() else scores.double()
        return lifted.masked_fill(keep_top(scores, floor, scope), float("inf")) if floor else lifted
