"""RigL: grow where the dense gradient is largest (Evci et al., ICML 2020)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import StepGradient
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.drop_grow import CosineFraction, DropGrow
from openwork.schedules import Periodic
from openwork.structure import Element


def rigl(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 1000,
    every: int | None = None,
    alpha: float = 0.3,
    scope: Literal["erk", "layer"] = "erk",
) -> Recipe:
    """Train sparse from the first step; drop the smallest active weights, grow those with the largest dense gradient.

    n_drop = floor(f(t) n_active), f(t) = alpha / 2 (1 + cos(pi t / T_end)), T_end = 0.75 steps.

    Args:
        density: kept share, constant; default 0.1.
        structure: what lives and dies together (no N:M or per-row structures).
        where: which parameters.
        steps: optimiser steps of the whole training.
        every: steps between updates; default ``steps / 100``, the paper's is 100 of 32,000.
        alpha: initial share of the active units replaced.
        scope: Erdos-Renyi-Kernel shares per layer, or the same in all.

    Differences:
        The update follows the optimiser step of the same batch instead of replacing it. New weights start at zero with
        fresh moments; a weight dropped and grown in one update keeps its value.

    Cost:
        One dense gradient per update, which dense autograd computes anyway; two selections.

    When not to use it:
        With a trained dense network at hand.

    Examples:
        >>> rigl(density=0.1, steps=1000).schedule.end
        750

    References:
        Evci et al. Rigging the Lottery. ICML 2020, arXiv 1911.11134.
    """
    share = settle_density(density, structure, 0.1)
    end = max(1, round(0.75 * steps))
    allocation = allocation_of(scope, structure, at_least=1)
    rule = DropGrow(StepGradient(), fraction=CosineFraction(alpha, end), allocation=allocation)
    return Recipe("rigl", structure, rule, Periodic(share, every or max(1, steps // 100), end), None, where)
