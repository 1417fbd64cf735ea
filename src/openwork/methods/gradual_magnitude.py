"""Gradual magnitude pruning on a cubic curve (Zhu and Gupta, 2018)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.relax import Masking
from openwork.rules.topk import TopK
from openwork.schedules import Cubic
from openwork.structure import Element


def gradual_magnitude(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    begin: int = 0,
    end: int = 1000,
    every: int = 100,
    initial: float = 1.0,
    power: float = 3.0,
    scope: Literal["layer", "global"] = "layer",
    masked: Literal["zero", "freeze"] = "zero",
) -> Recipe:
    """Raise sparsity during training along a cubic curve, re-pruning the smallest weights every few steps.

    s_t = s_f + (s_i - s_f) (1 - (t - begin) / (end - begin))^3 (eq. 1), at begin, begin + every, ..., and at end.

    Args:
        density: final kept share; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        begin: first step of the curve.
        end: step at which the density is reached; leave time to recover after it.
        every: steps between updates.
        initial: kept share at ``begin``.
        power: 3 for the paper's curve, 1 for a line.
        scope: same share in every layer, or one ranking.
        masked: ``zero`` writes zeros; ``freeze`` keeps masked values underneath, so that they can return.

    Differences:
        Counts are exact (the paper's code keeps ties in excess); a last update always happens at ``end``.

    Cost:
        One selection per update.

    When not to use it:
        When training is over; use ``magnitude`` and fine-tune.

    Examples:
        >>> [round(1 - gradual_magnitude(0.1, end=10, every=1).schedule(t).share, 4) for t in (0, 1, 5, 10)]
        [0.0, 0.2439, 0.7875, 0.9]

    References:
        Zhu, Gupta. To prune, or not to prune. ICLR 2018 workshop, arXiv 1710.01878.
    """
    if masked not in ("zero", "freeze"):
        raise RecipeError(f"gradual_magnitude: masked must be 'zero' or 'freeze', got {masked!r}")
    share = settle_density(density, structure, 0.1)
    rule = TopK(Magnitude(), allocation_of(scope, structure, "nearest", at_least=1))
    schedule = Cubic(share, begin, end, every, initial, power)
    return Recipe("gradual_magnitude", structure, rule, schedule, Masking() if masked == "freeze" else None, where)
