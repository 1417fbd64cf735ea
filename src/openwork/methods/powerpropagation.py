"""Powerpropagation: a reparametrisation that makes magnitude pruning cheap (Schwarz et al., NeurIPS 2021)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.relax import Power
from openwork.rules.topk import TopK
from openwork.schedules import Cubic, OneShot
from openwork.structure import Element


def powerpropagation(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 1000,
    alpha: float = 2.0,
    prune_at: float = 1.0,
    gradual_from: float | None = None,
    scope: Literal["auto", "layer", "global"] | None = None,
) -> Recipe:
    """Train v with w = v |v|^(alpha - 1): large weights learn faster, small ones stay small, and pruning costs little.

    dL/dv = alpha |v|^(alpha - 1) dL/dw. For groups |v| is the norm of the group, U_b = |V_b|^(alpha - 1) V_b (the block
    baseline of SequentialAttention++); with alpha = 2, l2 decay on V is group LASSO on U.

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together; its norms are what is raised to a power.
        where: which parameters.
        steps: optimiser steps of the whole training.
        alpha: the power, at least 1 (1 is ordinary training); the paper finds 2 to 4 best.
        prune_at: share of the steps after which the mask is final; 1 prunes after the last step, without retraining.
        gradual_from: share of the steps at which a cubic density curve towards ``prune_at`` begins; None is one-shot.
        scope: global for single weights, layer otherwise.

    Differences:
        The paper's notebook keeps twice the share in the output layer; here ``where`` and ``scope`` say what is
        pruned. Sizes below 1e-12 count as that in the derivative, so it stays finite at zero. Left out:
        EfficientPackNet, which serves a sequence of tasks, and float32 copies of weights in half precision.

    Cost:
        One power per weight and forward pass.

    When not to use it:
        Under Adam, whose normalisation undoes part of the effect, or on layers that start at zero: they stay there.

    Examples:
        >>> recipe = powerpropagation(density=0.1, steps=200, alpha=3.0)
        >>> recipe.schedule.last, recipe.relaxation.alpha
        (200, 3.0)

    References:
        Schwarz et al. Powerpropagation: A sparsity inducing weight reparameterisation. NeurIPS 2021, arXiv 2110.00296.
    """
    share = settle_density(density, structure, 0.1)
    end = round(prune_at * steps)
    if not 0 < prune_at <= 1 or end < 1:
        raise RecipeError(f"powerpropagation: prune_at must be a share of the steps in (0, 1], got {prune_at}")
    if gradual_from is not None and not 0 <= gradual_from < prune_at:
        raise RecipeError(f"powerpropagation: gradual_from must be in [0, prune_at), got {gradual_from}")
    scope = scope or ("global" if structure == Element() else "layer")
    rule = TopK(Magnitude(), allocation_of(scope, structure))
    schedule = (
        OneShot(share, end)
        if gradual_from is None
        else Cubic(share, round(gradual_from * steps), end, max(1, steps // 100))
    )
    return Recipe("powerpropagation", structure, rule, schedule, Power(alpha), where)
