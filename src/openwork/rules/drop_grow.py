"""Dynamic sparse training: drop some active units, grow as many inactive ones (SET, RigL, ITOP)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from openwork.allocation import ErdosRenyi
from openwork.core.across import Across
from openwork.core.now import Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.protocols import Allocation, Criterion, Rule
from openwork.core.select import keep_top
from openwork.core.shards import on_any, summed_over, total_of
from openwork.core.stat import Stat
from openwork.criteria import Magnitude, Random, StepGradient
from openwork.errors import DivergedError, RecipeError


class Fraction(Protocol):
    """Step -> share of the active units to replace."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class ConstantFraction:
    """The same drop fraction at every update (SET)."""

    alpha: float = 0.3

    def __post_init__(self) -> None:
        _check_alpha("ConstantFraction", self.alpha)

    def __call__(self, step: int) -> float:
        return self.alpha


@dataclass(frozen=True)
class CosineFraction:
    """``alpha / 2 (1 + cos(pi t / end))``, not below ``floor`` (RigL; ITOP uses a floor of 0.005)."""

    alpha: float
    end: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_alpha("CosineFraction", self.alpha)
        if self.end < 1:
            raise RecipeError(f"CosineFraction: end must be at least 1 step, got {self.end}")
        if not 0 <= self.floor <= self.alpha:
            raise RecipeError(f"CosineFraction: floor must be between 0 and alpha {self.alpha}, got {self.floor}")

    def __call__(self, step: int) -> float:
        if step >= self.end:
            return self.floor
        return self.floor + (self.alpha - self.floor) / 2 * (1 + math.cos(math.pi * step / self.end))


def _check_alpha(owner: str, alpha: float) -> None:
    if not 0 < alpha <= 1:
        raise RecipeError(f"{owner}: alpha must be in (0, 1], got {alpha}")


@dataclass(frozen=True)
class DropGrow(Rule):
    """At the first update draw a random mask; at each later one replace a fraction of the active units.

    The drop criterion decides among active units (largest stay), the grow criterion among all units not kept, so a
    unit just dropped may return. Counts per tensor never change. State: which units were ever active (for the
    in-time over-parameterisation rate) and, for the log, how many units really changed.
    """

    grow: Criterion = field(default_factory=StepGradient)
    drop: Criterion = field(default_factory=Magnitude)
    fraction: Fraction = field(default_factory=ConstantFraction)
    allocation: Allocation = field(default_factory=ErdosRenyi)

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return self.grow.needs | self.drop.needs

    @property
    def needs_grads(self) -> bool:  # type: ignore[override]
        return any(getattr(c, "needs_grads", False) for c in (self.grow, self.drop))

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        return all(getattr(c, "sharded", False) for c in (self.grow, self.drop, self.allocation))

    def init(self, now: Now) -> Any:
        regions = [n for n, p in now.parts.items() if not isinstance(p.scope(), Across | None)]
        if regions:
            raise RecipeError(
                f"{regions[0]}: DropGrow moves units over the whole tensor, but this structure has its own regions "
                "(N:M, per row); use Element, Block, Row or another structure without regions"
            )
        return {"ever": {n: torch.zeros_like(u) for n, u in now.units.items()}, "started": False}

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        if not state["started"]:
            scores = {n: Random()(p, now) for n, p in now.parts.items()}
            counts = self.allocation(now, scores, phase.share)
            units = {n: keep_top(s, counts[n], now.parts[n].scope()) for n, s in scores.items()}
            return Update(units, state={"ever": units, "started": True}, log=self._log(now, units, units, 0.0))
        share = self.fraction(now.step)
        active = summed_over(now.parts, {n: int(u.sum()) for n, u in now.units.items()})
        units = {n: self._replace(n, p, now, share, active[n]) for n, p in now.parts.items()}
        ever = {n: state["ever"][n] | u for n, u in units.items()}
        fresh: dict[str, Tensor] = {}
        for n, part in now.parts.items():
            for member, where in part.spread(units[n] & ~now.units[n]).items():
                fresh[member] = fresh[member] | where if member in fresh else where
        return Update(units, state={"ever": ever, "started": True}, fresh=fresh, log=self._log(now, units, ever, share))

    def _replace(self, name: str, part: Partition, now: Now, share: float, active: int) -> Tensor:
        alive, scope = now.units[name], part.scope()
        n_drop = int(share * active)
        if n_drop == 0 or active == total_of(part):
            return alive
        kept = keep_top(self.drop(part, now).double().masked_fill(~alive, float("-inf")), active - n_drop, scope)
        growth = self.grow(part, now).double()
        if on_any(part, bool(torch.isnan(growth).any())):
            raise DivergedError(f"{name}: the growth scores are NaN at step {now.step}; check the gradients")
        return kept | keep_top(growth.masked_fill(kept, float("-inf")), n_drop, scope)

    @staticmethod
    def _log(now: Now, new: Any, ever: Any, share: float) -> dict[str, float]:
        total = sum(total_of(p) for p in now.parts.values())
        grown = summed_over(now.parts, {n: int((new[n] & ~now.units[n]).sum()) for n in new})
        active = summed_over(now.parts, {n: int(u.sum()) for n, u in ever.items()})
        return {
            "drop_fraction": share,
            "grown": sum(grown.values()),
            "ever_active": sum(active.values()) / total,
        }
