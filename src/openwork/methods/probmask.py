"""ProbMask: keep-probabilities under one global budget (Zhou et al., CVPR 2021)."""

from __future__ import annotations

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Learned
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.relax import Probabilities
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.structure import Element

PAPER, FASTEST, TRAVEL = 6e-3, 0.1, 60.0
"""Rates of the probabilities: the paper's, the largest by default, and what rate times steps should be at least."""


def probmask(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 1000,
    learning_rate_of_s: float | None = None,
    budget: tuple[float, float] = (0.16, 0.60),
    fix_at: float = 0.9,
    samples: int = 1,
) -> Recipe:
    """Train a keep-probability per unit with the weights, under one budget over all tensors; end with the likeliest.

    min over w, s of E_m L(w m), m_i ~ Bernoulli(s_i), sum s <= K, sampled as sigmoid((logit s + g1 - g0) / tau). After
    every step s is projected onto {0 <= s <= 1, sum s <= K_t} over all tensors at once.

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together; one probability per unit.
        where: which parameters.
        steps: optimiser steps of the whole training.
        learning_rate_of_s: Adam's rate for the probabilities (cosine), which no optimiser of the user touches. Default:
            the paper's 0.006, and 60 / steps up to 0.1 in trainings that are too short for it (measured).
        budget: shares of the steps between which the budget falls on a cubic curve from 1 to the density.
        fix_at: share of the steps after which the mask is final and only weights are trained.
        samples: K', forward passes with a draw each whose loss is averaged in every step (the paper: 2). The trainer of
            the command line does so; a loop of your own asks ``run.averaged(loss)``.

    Differences:
        The mask keeps exactly the largest probabilities instead of the best of ten random draws, whose density varies.
        One sample per forward pass and by default one pass; in eval mode the expected mask. The paper clips the
        gradient of weights and probabilities to a norm of 3 together, here that of the probabilities alone is; at 0 and
        1 it is that of the nearest value the sampler takes, so that a unit at 0 can return.

    Cost:
        One probability per unit with Adam moments, one random number pair per unit and forward pass, one bisection
        over all probabilities per step.

    When not to use it:
        With BatchNorm statistics that you cannot recompute afterwards: they are those of random masks.

    Examples:
        >>> recipe = probmask(density=0.05, steps=200)
        >>> recipe.schedule.last, recipe.relaxation.budget(1.0, 0.05)
        (180, 0.05)

    References:
        Zhou et al. Effective Sparsification of Neural Networks with Global Sparsity Constraint. CVPR 2021,
        arXiv 2105.01571.
    """
    share = settle_density(density, structure, 0.1)
    if not budget[1] <= fix_at <= 1:
        raise RecipeError(f"probmask: fix_at must lie between the end of the budget {budget[1]} and 1, got {fix_at}")
    rule = TopK(Learned(), allocation_of("auto", structure))
    rate = max(PAPER, min(FASTEST, TRAVEL / steps)) if learning_rate_of_s is None else learning_rate_of_s
    relaxation = Probabilities(steps, *budget, rate, samples=samples)
    return Recipe("probmask", structure, rule, OneShot(share, max(1, round(fix_at * steps))), relaxation, where)
