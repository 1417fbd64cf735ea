"""Scores that weigh each weight by the size of its input."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from openwork.core.now import Now
from openwork.core.protocols import Partition, Stat
from openwork.stats import InputSquares


@dataclass(frozen=True)
class WeightTimesInput:
    """``|w| * ||x||_2`` (Wanda) over the calibration batches; a unit takes the l2 norm of its entries."""

    inputs: InputSquares = field(default_factory=InputSquares)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.inputs})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        squares = now[self.inputs]
        return part.pool({m: now.weights[m].float() * squares[m].sqrt() for m in part.members}, "norm")
