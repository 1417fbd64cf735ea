"""Scores from the weights alone, or from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.errors import RecipeError

NOTHING: frozenset[Stat] = frozenset()


@dataclass(frozen=True)
class Magnitude:
    """The norm of each unit: ``l2`` (Frobenius) or ``l1``; for single weights both are ``|w|``.

    ``mean=True`` divides by the unit's size, so that small edge units are judged fairly.
    """

    sharded: ClassVar[bool] = True
    norm: Literal["l1", "l2"] = "l2"
    mean: bool = False

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise RecipeError(f"Magnitude: norm must be 'l1' or 'l2', got {self.norm!r}")

    @property
    def needs(self) -> frozenset[Stat]:
        return NOTHING

    def __call__(self, part: Partition, now: Now) -> Tensor:
        values = {m: now.weights[m] for m in part.members}
        if self.norm == "l1":
            score = part.pool({m: w.abs() for m, w in values.items()})
        else:
            score = part.pool(values, "norm")
        if not self.mean:
            return score
        cost = part.cost.to(score)
        return score / (cost if self.norm == "l1" else cost.sqrt())


@dataclass(frozen=True)
class Random:
    """Uniform random scores from the recipe's generator: the baseline that every method must beat.

    Of a tensor in pieces every rank draws all scores, in chunks, and keeps its own.
    """

    sharded: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Stat]:
        return NOTHING

    def __call__(self, part: Partition, now: Now) -> Tensor:
        across = getattr(part, "across", None)
        first, total = (0, part.n_units) if across is None else (across.first, across.total)
        _drawn(first, now.rng)
        scores = torch.rand(part.n_units, generator=now.rng, dtype=torch.float64)
        _drawn(total - first - part.n_units, now.rng)
        return scores.to(now.weights[part.members[0]].device)


def _drawn(count: int, rng: torch.Generator, chunk: int = 1 << 22) -> None:
    """Draw and drop so many numbers."""
    for first in range(0, count, chunk):
        torch.rand(min(chunk, count - first), generator=rng, dtype=torch.float64)
