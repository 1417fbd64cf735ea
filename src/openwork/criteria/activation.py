"""Scores that weigh each weight by the size of its input."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from openwork.core.now import Now
from openwork.core.protocols import Partition, Stat
from openwork.stats import InputSquares


@dataclass(frozen=True)
class WeightTimesInput:
    """``|w| * ||x||_2`` (Wanda) over the calibration batches; a unit takes the l2 norm of its entries.

    Weights whose input never fired, those of an expert that saw no token for instance, rank below all others and
    among themselves by their size.
    """

    inputs: InputSquares = field(default_factory=InputSquares)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.inputs})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        squares = now[self.inputs]
        return part.pool({m: now.weights[m].float() * _fired(squares[m]).sqrt() for m in part.members}, "norm")


def _fired(squares: Tensor) -> Tensor:
    largest = float(squares.max()) if squares.numel() else 0.0
    return squares.clamp_min((largest or 1.0) * 1e-20)
