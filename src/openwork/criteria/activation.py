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


@dataclass(frozen=True)
class WeightTimesInput:
    """``|w| * ||x||_2`` (Wanda) over the calibration batches; a unit takes the l2 norm of its entries.

    Weights whose input never fired, those of an expert that saw no token for instance, rank below all others and
    among themselves by their size.
    """

    sharded: ClassVar[bool] = True
    inputs: InputSquares = field(default_factory=InputSquares)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.inputs})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        squares = now[self.inputs]
        return part.pool({m: now.weights[m].float() * _fired(squares[m], part).sqrt() for m in part.members}, "norm")


def _fired(squares: Tensor, part: Partition) -> Tensor:
    across = getattr(part, "across", None)
    largest = float(squares.max()) if squares.numel() else 0.0
    largest = largest if across is None else across.largest(largest)
    return squares.clamp_min((largest or 1.0) * 1e-20)


@dataclass(frozen=True)
class BetaRank:
    """``|w| * sigma_out / sigma_in`` of the weight's filter: Beta-Rank's ``||f_k||_1 beta_k``, summed over a unit.

    Of coupled units only the filters that make them are scored.
    """

    ratios: DeviationRatios = field(default_factory=DeviationRatios)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.ratios})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        (seen,) = making({"": part}).values()
        ratios = now[self.ratios]
        values = {}
        for m in seen.members:
            weight = now.weights[m].double().abs()
            along = -1 if _is_transposed(part, m) else 0
            shape = [1] * weight.ndim
            shape[along] = -1
            values[m] = weight * ratios[m].view(shape)
        return seen.pool(values)


def _is_transposed(part: Partition, member: str) -> bool:
    view = getattr(part, "view", None)
    if view is not None:
        return bool(view.order == (1, 0))
    return any(s.tensor == member and s.dim == 1 for s in part.side(False).sites)  # type: ignore[attr-defined]
