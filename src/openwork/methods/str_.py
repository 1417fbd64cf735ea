"""STR: soft threshold reparametrisation (Kusupati et al., ICML 2020)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.relax import SoftThreshold
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.structure import Element


def str_(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 1000,
    control: Literal["budget", "decay"] = "budget",
    initial: float | None = None,
    decay: float | None = None,
    begin: float = 0.05,
    end: float = 0.75,
    function: Literal["sigmoid", "exp"] = "sigmoid",
) -> Recipe:
    """Learn one pruning threshold per layer together with the weights; the layer budgets come out of training.

    S(W, s) = sign(W) relu(|W| - f(s)); dL/dW passes where |W| > f(s), dL/ds = -f'(s) sum dL/dS sign(W) there.

    Args:
        density: kept share; default 0.1.
        structure: single weights only.
        where: which parameters.
        steps: optimiser steps of the whole training.
        control: ``budget`` multiplies all thresholds by one factor that keeps the density on a cubic curve, so it ends
            exact and its division among the layers is learned; ``decay`` is the paper: weight
            decay pulls s towards 0 and f(s) up.
        initial: starting s; default -8 under ``budget``, -12 under ``decay`` (the paper's -3200 and -12800 are
            for 450,000 steps: s shrinks by the product of 1 - lr decay / (1 - momentum)).
        decay: weight decay of s; None is the optimiser's own. Only under ``decay``.
        begin: share of the steps at which the curve starts.
        end: share of the steps after which the mask is final.
        function: f, ``sigmoid`` or ``exp`` (the paper's choice for recurrent networks).

    Differences:
        The paper has no exact target. Under ``decay`` the largest |S| are kept up to the density, and a training that
        became sparser than promised, or left less than a thousandth of a tensor, is refused. Weights start thresholded
        outwards, so that the start is the dense network. One threshold for each tensor; those for each filter or for
        the whole model, and gradual pruning to the shares that were learned, are left out.

    Cost:
        One scalar per layer; one selection over all weights per hundredth of the training.

    When not to use it:
        On a trained network: kept weights are shrunk by the threshold and need training with it.

    Examples:
        >>> str_(density=0.1, steps=400).schedule.last
        300

    References:
        Kusupati et al. Soft Threshold Weight Reparameterization for Learnable Sparsity. ICML 2020, arXiv 2002.03231.
    """
    share = settle_density(density, structure, 0.1)
    first, last = round(begin * steps), round(end * steps)
    if not 0 <= first < last <= steps:
        raise RecipeError(f"str: needs 0 <= begin < end <= 1 as shares of {steps} steps, got {begin} and {end}")
    if structure != Element():
        raise RecipeError(f"str: thresholds single weights, so structure must be Element(), got {structure}")
    start = initial if initial is not None else {"budget": -8.0, "decay": -12.0}.get(control, 0.0)
    relaxation = SoftThreshold(first, last, max(1, steps // 100), start, control, decay, function)
    rule = TopK(Magnitude(), allocation_of("global", structure), positive=True)
    return Recipe("str", structure, rule, OneShot(share, last), relaxation, where)
