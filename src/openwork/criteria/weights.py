"""Scores from the weights alone, or from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.core.now import Now
from openwork.core.protocols import Partition, Stat
from openwork.errors import RecipeError

NOTHING: frozenset[Stat] = frozenset()


@dataclass(frozen=True)
class Magnitude:
    """The norm of each unit: ``l2`` (Frobenius) or ``l1``; for single weights both are ``|w|``.

    ``mean=True`` divides by the unit's size, so that small edge units are judged fairly.
    """

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
    """Uniform random scores from the recipe's generator: the baseline that every method must beat."""

    @property
    def needs(self) -> frozenset[Stat]:
        return NOTHING

    def __call__(self, part: Partition, now: Now) -> Tensor:
        return torch.rand(part.n_units, generator=now.rng, dtype=torch.float64).to(now.weights[part.members[0]].device)
