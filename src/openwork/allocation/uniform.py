"""The same share in every partition, or in every region of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation.bounds import rounded
from openwork.core.across import Across
from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.select import Rounding, count_kept
from openwork.core.shards import total_of
from openwork.errors import RecipeError


def keep_in(part: Partition, share: float, rounding: Rounding, at_least: int = 0) -> int | Tensor:
    """How many units one partition keeps, per region when it has regions.

    A structure with its own quota (N:M) is met exactly at its density and rounds up on the way there.
    """
    scope = part.scope()
    if part.quota is not None:
        keep, of = part.quota
        return max(keep, count_kept(share, of, "ceil"))
    if isinstance(scope, Tensor):
        sizes = torch.bincount(scope).tolist()
        return torch.tensor([max(min(at_least, n), count_kept(share, n, rounding)) for n in sizes], dtype=torch.int64)
    size = total_of(part) if scope is None or isinstance(scope, Across) else scope
    return max(min(at_least, size), count_kept(share, size, rounding))


@dataclass(frozen=True)
class Uniform:
    """Every partition keeps the same share of its units, at least ``at_least`` of them."""

    sharded: ClassVar[bool] = True
    rounding: Rounding = "ceil"
    at_least: int = 0

    def __post_init__(self) -> None:
        if self.at_least < 0:
            raise RecipeError(f"Uniform: at_least must not be negative, got {self.at_least}")
        count_kept(1.0, 1, self.rounding)

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        return rounded(now, {n: keep_in(now.parts[n], share, self.rounding, self.at_least) for n in scores})
