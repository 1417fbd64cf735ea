"""Scores that weigh each weight by what flows through it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.stats import InputSquares
from openwork.stats.deviations import DeviationRatios, making
from openwork.stats.inputs import weighing
from openwork.structure.coupled import Coupled


@dataclass(frozen=True)
class WeightTimesInput:
    """``|w| * ||x||_2`` (Wanda) over the calibration batches; a unit takes the l2 norm of its entries.

    Of a coupled unit those entries count that read it, as in Wanda-sp; where none does (experts, blocks, tokens of an
    output head) all that multiply inputs.

    Weights whose input never fired, those of an expert that saw no token for instance, rank below all others and
    among themselves by their size.
    """

    whole: ClassVar[bool] = True
    sharded: ClassVar[bool] = True
    inputs: InputSquares = field(default_factory=InputSquares)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.inputs})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        squares = now[self.inputs]
        if isinstance(part, Coupled):
            (seen,) = weighing({"": part}).values()
            part = seen.only(m for m in seen.members if m in squares)  # type: ignore[attr-defined]
        return part.pool({m: now.weights[m].float() * _fired(squares[m], part).sqrt() for m in part.members}, "norm")


def _fired(squares: Tensor, part: Partition) -> Tensor:
    across = getattr(part, "across", None)
    largest = float(squares.max()) if squares.numel() else 0.0
    largest = largest if across is None else across.largest(largest)
    return squares.clamp_min((largest or 1.0) * 1e-20)


@dataclass(frozen=True)
class BetaRank:
    """``|w| * sigma_out / sigma_in`` of the weight's filter: Beta-Rank's ``||f_k||_1 beta_k``, summed over a unit.

    Of coupled units only the filters that make them are scored, of blocks all filters inside.
    """

    ratios: DeviationRatios = field(default_factory=DeviationRatios)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.ratios})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        (seen,) = making({"": part}).values()
        ratios = now[self.ratios]
        values = {}
        if isinstance(seen, Coupled):
            seen = seen.only(m for m in seen.members if m in ratios)
        for m in seen.members:
            values[m] = now.weights[m].double().abs() * ratios[m]
        return seen.pool(values)
