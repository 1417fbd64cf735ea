"""SpODE in rounds of path and fine-tuning (Mo, Shi, Pan, ICML 2023)."""

from __future__ import annotations

from typing import Any, Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.methods._common import settle_density
from openwork.methods.spode import path_rule
from openwork.relax import Masking
from openwork.schedules import Rounds
from openwork.structure import Element


def spode_iterative(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    rounds: int = 10,
    steps: int = 100,
    radius: float = 1.1,
    polariser: Literal["ohh", "ohm", "oh", "qt", "qtm", "gau", "id"] = "ohh",
    measure: Literal["l1", "l2"] = "l2",
    scope: Literal["auto", "global", "local"] = "auto",
    **options: Any,
) -> Recipe:
    """SpODE from density^((j-1)/R) to density^(j/R) in round j, each followed by a short fine-tuning.

    The direction is that of ``spode``; every round starts from the binary mask of the one before. Pruned weights keep
    their value beside the model, so that the next round may bring them back.

    Args:
        density: kept share after the last round; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        rounds: R.
        steps: Euler steps per round.
        radius: as in ``spode``.
        polariser: as in ``spode``.
        measure: as in ``spode``.
        scope: as in ``spode``.
        options: further fields of ``openwork.rules.spode.SpODE``.

    Differences:
        As ``spode``. The code takes the polariser's density from G, which for l2 and a binary start is sqrt(density)
        and far too dense; here it follows the schedule.

    Cost:
        R N forward and backward passes and R fine-tunings; runs under ``ow.cycle``.

    When not to use it:
        When one fine-tuning is all you can afford.

    Examples:
        >>> recipe = spode_iterative(density=0.1)
        >>> recipe.drive, round(recipe.schedule(5).share, 4)
        ('cycle', 0.3162)

    References:
        Mo, Shi, Pan. Pruning via Sparsity-indexed ODE: A Continuous Sparsity Viewpoint. ICML 2023, PMLR 202.
    """
    share = settle_density(density, structure, 0.1)
    rule = path_rule(structure, scope, steps=steps, radius=radius, polariser=polariser, measure=measure, **options)
    return Recipe("spode_iterative", structure, rule, Rounds(share, rounds), Masking(), where)
