"""Scores that a relaxation has learned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.errors import MissingStatistic


@dataclass(frozen=True)
class Learned:
    """The gate values of a soft relaxation, one per unit."""

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset()

    def __call__(self, part: Partition, now: Now) -> Tensor:
        name = next(n for n, p in now.parts.items() if p is part)
        if name not in now.learned:
            raise MissingStatistic(f"{name}: no gate was learned; Learned() needs a soft relaxation and ow.attach")
        return now.learned[name]
