"""Targets with a unit: the units that stay so that parameters, bytes, products or milliseconds fit a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.now import Now, Phase, Update
from openwork.core.recipe import Recipe
from openwork.engine.fill import exchanged, filled
from openwork.errors import DensityMissed, RecipeError, did_you_mean
from openwork.graph.cost import UNITS
from openwork.graph.latency import LatencyTable

TOLERANCE = 0.01
STEPS = 24
TIMED = ("latency", "latency_ms")
ALL = (*UNITS, *TIMED)


def check_target(target: Mapping[str, float]) -> tuple[str, float]:
    """The unit and the value of a target: ``{"macs": 0.5}``, ``{"bytes": 2_000_000}``, ``{"latency_ms": 3.5}``.

    Raises:
        RecipeError: not one unit, an unknown one, or a value that is no share and no amount.
    """
    if len(target) != 1:
        raise RecipeError(f"a target must name one unit, for instance {{'macs': 0.5}}, got {dict(target)!r}")
    unit, value = next(iter(target.items()))
    if unit not in ALL:
        raise RecipeError(f"unknown unit of a target {unit!r}; {did_you_mean(str(unit), ALL)}")
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    if not number or (unit != "latency_ms" and (1 <= value <= 100 or (unit == "latency" and value >= 1))):
        hint = f"; {value:g} % is {value / 100:g}" if number and 1 < value <= 100 else ""
        amount = "" if unit == "latency" else ", or an amount above 100" if unit in UNITS else ", or milliseconds"
        raise RecipeError(
            f"a target must be the share of {unit} that stays, above 0 and below 1{amount}, got {value!r}{hint}"
        )
    return unit, float(value)


@dataclass
class Budget:
    """What may stay: ``share`` of the ``dense`` cost of a model. It decides in place of a rule's own count of units.

    The shares of a schedule are read as shares of the cost, so that gradual methods follow their curve in it.
    """

    unit: str
    asked: float
    share: float
    dense: float
    cost: Any

    @classmethod
    def of(cls, target: Mapping[str, float], model: nn.Module, recipe: Recipe) -> Budget:
        """Count (or measure) the dense model.

        Raises:
            RecipeError: a structure without a cost, or more than the model has.
        """
        unit, value = check_target(target)
        structure: Any = recipe.structure
        timed = unit in TIMED
        if not hasattr(structure, "timed" if timed else "cost"):
            wanted = "ow.channels, ow.heads, ow.hidden" if timed else "ow.channels, ow.heads, ow.layers"
            raise RecipeError(f"a target in {unit} needs a coupled structure ({wanted}, ...), got {structure}")
        cost = structure.timed(model) if timed else structure.cost(model, recipe.where)
        dense = float(cost("latency_ms" if timed else unit, {}))
        share = value if value < 1 and unit != "latency_ms" else value / dense
        if not 0 < share < 1:
            raise RecipeError(f"a target of {value:g} {unit} leaves nothing to prune: the dense model has {dense:,.6g}")
        return cls(unit, value, share, dense, cost)

    def of_units(self, units: Mapping[str, Tensor]) -> float:
        """The cost of a choice of units."""
        unit = "latency_ms" if self.unit in TIMED else self.unit
        return float(self.cost(unit, {n: u.cpu() for n, u in units.items()}))

    def decide(self, recipe: Recipe, now: Now, phase: Phase, state: Any) -> Update:
        """The rule's answer at the share of units whose cost is ``phase.share`` of the dense one.

        Search the share; where counts jump over the target, fill up unit by unit between the two nearest answers. An
        update that chooses nothing is passed on.

        Raises:
            DensityMissed: the rule accepts no share of units.
        """
        wanted = phase.share * self.dense
        seed = now.rng.get_state()
        last: Update | None = None
        low, high, refused = 0.0, 1.0, ""
        under: tuple[float, Update] | None = None
        over: tuple[float, Update] | None = None
        share = phase.share**0.5
        alive = sum(int(u.sum()) for u in now.units.values()) / sum(u.numel() for u in now.units.values())
        for step in range(STEPS):
            try:
                units = recipe.rule.recut(now, last, share) if last is not None else None
                if last is None or units is None:
                    now.rng.set_state(seed)
                    last = recipe.rule.update(now, replace(phase, share=share), state)
                else:
                    last = replace(last, units=units)
            except RecipeError as problem:  # below the floors, or above what is alive where nothing returns
                refused = str(problem)
                low, high = (low, share) if share > alive else (share, high)
                share = (low + high) / 2
                continue
            chosen = recipe.rule.chosen(last)
            if chosen is None:
                return last
            answer = self.of_units(chosen), replace(last, units=chosen)
            found = answer[0]
            if found <= wanted:
                low, under = share, answer if under is None or found >= under[0] else under
            else:
                high, over = share, answer if over is None or found <= over[0] else over
            if abs(found - wanted) <= TOLERANCE / 10 * wanted or high - low < 1e-6:
                break
            share = _between(low, high, under and under[0], over and over[0], wanted, step)
        if under is None and over is None:
            raise DensityMissed(f"{recipe.name}: no share of units was accepted ({refused})")
        found_both = [f for f in (under, over) if f is not None]
        fixed = any(recipe.rule.settled(now, f[1], f[1].units) is None for f in found_both)
        if not fixed and under is not None and over is not None and wanted - under[0] > TOLERANCE / 10 * wanted:
            under = filled(under, over, now.parts, self.of_units, wanted)
        best = min((f for f in (under, over) if f is not None), key=lambda f: abs(f[0] - wanted))
        if not fixed and abs(best[0] - wanted) > TOLERANCE * wanted and phase.share == recipe.density:
            best = exchanged(best, now.parts, self.of_units, wanted, TOLERANCE * wanted)
        return recipe.rule.settled(now, best[1], best[1].units) or best[1]

    def told(self, recipe: Recipe, units: Mapping[str, Tensor]) -> dict[str, Any]:
        """What was asked and reached.

        Raises:
            DensityMissed: the cost is not within 1 % of the target; the nearest cost is named.
        """
        reached = self.refuse_missed(recipe, units)
        total = sum(u.numel() for u in units.values())
        told = {"unit": self.unit, "asked": self.asked, "dense": self.dense, "reached": reached}
        told |= {"share": reached / self.dense, "units_share": sum(int(u.sum()) for u in units.values()) / total}
        return told | (self.cost.checked(units) if isinstance(self.cost, LatencyTable) else {})

    def refuse_missed(self, recipe: Recipe, units: Mapping[str, Tensor]) -> float:
        """The cost of the units, if it is within 1 % of the target; else DensityMissed."""
        reached = self.of_units(units)
        if abs(reached - self.share * self.dense) > (TOLERANCE + 1e-9) * self.share * self.dense:
            least = self.of_units({n: _fewest(u) for n, u in units.items()})
            amount = f" ({reached:,.6g} {self.unit}, {self.asked:,.6g} asked)" if self.share != self.asked else ""
            raise DensityMissed(
                f"{recipe.name}: {self.share:.4g} of the {self.dense:,.6g} {self.unit} cannot be met within 1 %; the "
                f"closest reachable is {reached / self.dense:.4f}{amount}; with a single unit in every group it would "
                f"be {least / self.dense:.4f}; floors, multiples and frozen axes leave no unit in between"
            )
        return reached


def _between(low: float, high: float, below: float | None, above: float | None, wanted: float, step: int) -> float:
    """The next share: where a straight line between the two costs meets the target, every third time the middle."""
    if below is None or above is None or above <= below or step % 3 == 2:
        return (low + high) / 2
    at = low + (high - low) * (wanted - below) / (above - below)
    margin = 0.02 * (high - low)
    return min(max(at, low + margin), high - margin)


def _fewest(units: Tensor) -> Tensor:
    return torch.arange(units.numel()) < 1


def settled(recipe: Recipe, share: float) -> Recipe:
    """The recipe with another density: that of its schedule."""
    schedule: Any = recipe.schedule
    return replace(recipe, schedule=replace(schedule, density=share))
