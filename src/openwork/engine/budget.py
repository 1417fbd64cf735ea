"""Targets with a unit: the density of units at which parameters, bytes or multiply-accumulates meet a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from openwork.core.now import Update
from openwork.engine.session import Session
from openwork.errors import DensityMissed, RecipeError, did_you_mean
from openwork.graph.cost import UNITS, cost_of
from openwork.structure.coupling import Coupling

TOLERANCE = 0.01


def check_target(target: Mapping[str, float]) -> tuple[str, float]:
    """The unit and the share of a target such as ``{"macs": 0.5}``.

    Raises:
        RecipeError: not one unit, an unknown one, or a share outside (0, 1).
    """
    if len(target) != 1:
        raise RecipeError(f"a target must name one unit, for instance {{'macs': 0.5}}, got {dict(target)!r}")
    unit, share = next(iter(target.items()))
    if unit not in UNITS:
        raise RecipeError(f"unknown unit of a target {unit!r}; {did_you_mean(str(unit), UNITS)}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise RecipeError(f"a target must be the share of {unit} that stays, above 0 and below 1, got {share!r}")
    return unit, float(share)


def decide_within(session: Session, target: Mapping[str, float], steps: int = 24) -> tuple[Update, dict[str, Any]]:
    """Bisect the share of units until the budget is met; the rule decides afresh for every share.

    Returns:
        The rule's answer at the share that comes nearest, and what was asked and reached.

    Raises:
        RecipeError: a structure without a graph.
        DensityMissed: no share comes within 1 % of the target; the nearest cost is named.
    """
    unit, share = check_target(target)
    structure = session.recipe.structure
    if not isinstance(structure, Coupling):
        raise RecipeError(f"a target in {unit} needs a coupled structure (ow.channels, ow.heads, ...), got {structure}")
    cost = cost_of(session.model, structure.graph(session.model))
    dense = cost(unit, {})
    wanted = share * dense
    start = (dict(session.units), session.state, list(session.log))
    low, high, refused = 0.0, 1.0, ""
    tried: dict[float, int] = {}
    best: tuple[float, float, Update, tuple[dict[str, Tensor], Any, list[dict[str, Any]]]] | None = None
    for _ in range(steps):
        middle = (low + high) / 2
        session.units, session.state, session.log = dict(start[0]), start[1], list(start[2])
        try:
            update = session.decide(replace(session.recipe.schedule(0), share=middle), 0)
        except RecipeError as problem:  # a share below the floors of the groups
            low, refused = middle, str(problem)
            continue
        found = tried[middle] = cost(unit, {n: u.cpu() for n, u in session.units.items()})
        error = abs(found - wanted)
        if best is None or error < best[0]:
            best = (error, middle, update, (dict(session.units), session.state, list(session.log)))
        if error <= TOLERANCE / 10 * wanted:
            break
        low, high = (middle, high) if found < wanted else (low, middle)
    if best is None:
        raise DensityMissed(f"{session.recipe.name}: no share of units was accepted ({refused})")
    error, middle, update, (session.units, session.state, session.log) = best
    if error > TOLERANCE * wanted:
        raise DensityMissed(
            f"{session.recipe.name}: {share:g} of the {dense:,} {unit} cannot be met within 1 %; the closest reachable "
            f"is {tried[middle] / dense:.4f} (between {min(tried.values()) / dense:.4f} and "
            f"{max(tried.values()) / dense:.4f}): floors, multiples and frozen axes leave no unit in between"
        )
    told = {"unit": unit, "asked": share, "dense": dense, "reached": tried[middle], "share": tried[middle] / dense}
    return update, {**told, "units_share": middle}
