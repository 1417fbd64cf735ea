"""SET: sparse evolutionary training (Mocanu et al., 2018)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Random
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.drop_grow import ConstantFraction, DropGrow
from openwork.schedules import Periodic
from openwork.structure import Element


def set_(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 1000,
    every: int | None = None,
    alpha: float = 0.3,
    scope: Literal["erk", "layer"] = "erk",
) -> Recipe:
    """Train sparse from the first step; drop the smallest active weights and grow as many at random.

    Args:
        density: kept share, constant; default 0.1.
        structure: what lives and dies together (no N:M or per-row structures).
        where: which parameters.
        steps: optimiser steps of the whole training; none of the last quarter brings new weights.
        every: steps between updates; default ``steps / 100``, the paper's is one epoch.
        alpha: share of the active units replaced at each update.
        scope: Erdos-Renyi-Kernel shares per layer, or the same in all.

    Differences:
        Drops by |w| over all signs, where the original takes the smallest positive and the largest negative weights
        half and half; new weights start at zero; counts are exact.

    Cost:
        One selection per update.

    When not to use it:
        With a trained dense network at hand.

    Examples:
        >>> set_(density=0.1, steps=1000).schedule.every
        10

    References:
        Mocanu et al. Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
        network science. Nature Communications 2018, arXiv 1707.04780.
    """
    share = settle_density(density, structure, 0.1)
    rule = DropGrow(Random(), fraction=ConstantFraction(alpha), allocation=allocation_of(scope, structure, at_least=1))
    schedule = Periodic(share, every or max(1, steps // 100), max(1, round(0.75 * steps)))
    return Recipe("set", structure, rule, schedule, None, where)
