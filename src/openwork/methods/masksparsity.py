"""MaskSparsity: a sparsity penalty on the scales of chosen channels only (Jiang et al., MIR 2023)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.scale_penalty import Kind
from openwork.rules.scales import MaskedScales
from openwork.schedules import Announced
from openwork.structure import Filter


def masksparsity(
    density: float | None = None,
    structure: Structure = Filter(),
    where: Select = Select(),
    steps: int = 1000,
    slim: float = 0.3,
    choose: float = 0.5,
    remove: float = 0.8,
    lam: float = 5e-4,
    norm: Kind = "l1",
    lr: float = 0.0,
    scope: Literal["layer", "global", "vote"] = "layer",
    restart: bool = True,
) -> Recipe:
    """Decide first which channels will go, shrink the norm scales of those alone, and remove them when they are small.

    dL/dgamma_c + lam P_c sign(gamma_c), P_c = 1 for channels that will go. They are the ones with the smallest scales
    after a stretch of Network Slimming (P = 1 everywhere); the weights then return to those before the stretch.

    Args:
        density: kept share of the units; default 0.5.
        structure: ``ow.channels(example=x)``; only coupled units have norms.
        where: which parameters.
        steps: optimiser steps of the whole training.
        slim: share of the training after which slimming begins; equal to ``choose``, there is none and the scales of
            the dense training decide. Both 0 for a network that is trained already.
        choose: share after which units are chosen and the penalty begins.
        remove: share after which they are removed; the rest is fine-tuning.
        lam: strength of the penalty. A scale moves by at most the sum of the learning rates times ``lam``, so short
            trainings need more than the paper's 5e-4.
        norm: ``l1``, ``l2``, or ``smooth_l1`` that does not swing around zero (with ``lr``).
        lr: learning rate of ``smooth_l1``.
        restart: weights return to what they were before slimming; False, with ``choose`` just before ``remove``, is
            Network Slimming.
        scope: the same share in every group, one ranking, or the same share by a vote of the norms of each stream.

    Differences:
        One training instead of four; every stretch is a share of it. How many channels go is asked for, where the paper
        cuts at |gamma| <= 0.01; the log counts those that are larger when they are removed. What returns to its value
        before slimming are the weights that lie in groups, not running statistics. Of channels with equal votes only so
        many go as were asked for. Constants relu(beta) of removed channels are not moved into the next bias:
        ``ow.recalibrate`` does the same where a norm follows.

    Cost:
        One addition per norm and step; a copy of the weights while slimming.

    When not to use it:
        Without BatchNorm; with Adam, whose steps do not grow with ``lam``: use ``MaskedScalePenalty.prox_`` in your
        loop.

    Examples:
        >>> recipe = masksparsity(0.5, steps=100)
        >>> [recipe.schedule(step).name for step in (0, 40, 60, 90)]
        ['dense', 'slim', 'masked', 'sparse']

    References:
        Jiang, Zhao, Zhao, Tang, Wang. Pruning-aware Sparse Regularization for Network Pruning. Machine Intelligence
        Research 2023, arXiv 2201.06776.
    """
    if not 0 <= slim <= choose < remove <= 1:
        raise RecipeError(f"masksparsity: needs 0 <= slim <= choose < remove <= 1, got {slim}, {choose} and {remove}")
    allocation = allocation_of("layer" if scope == "vote" else scope, structure, at_least=1)
    rule = MaskedScales(allocation, lam, norm, lr, scope == "vote", restart)
    share = settle_density(density, structure, 0.5)
    schedule = Announced(share, *(round(at * steps) for at in (slim, choose, remove)))
    return Recipe("masksparsity", structure, rule, schedule, None, where)
