"""Random pruning: the naive baseline (Liu et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from openwork.allocation import Borrowed, FixedEnds, Global
from openwork.core.protocols import Criterion, Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Grasp, Magnitude, Random, Saliency
from openwork.methods._common import allocation_of, has_regions, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import GradientFlow, LossGradient
from openwork.structure import Element

SOURCES: dict[str, Callable[[int], Criterion]] = {
    "magnitude": lambda batches: Magnitude(),
    "snip": lambda batches: Saliency(LossGradient(batches)),
    "grasp": lambda batches: Grasp(GradientFlow(batches)),
}


def random(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    scope: Literal["erk", "erk+", "layer", "layer+", "global", "magnitude", "snip", "grasp"] | None = None,
    batches: int = 1,
) -> Recipe:
    """Keep units drawn at random, with a good share per layer; train from there with the mask fixed.

    ERK: d_l = min(1, eps (n_out + n_in + k_h + k_w) / (n_out n_in k_h k_w)), eps such that the mean is the density.

    Args:
        density: kept share of units in (0, 1]; default 0.05.
        structure: what lives and dies together.
        where: which parameters.
        scope: ``erk`` (default; ``layer`` for N:M and per-row structures), ``layer`` or ``global``; ``erk+`` is ERK
            behind a dense last tensor, ``layer+`` (the paper's uniform+) keeps the first tensor dense, at least a
            fifth of the last, and equal shares of the others. First and last are the model's order of parameters.
            ``snip``, ``grasp`` and ``magnitude`` borrow the shares that the ranking of all units by that criterion
            gives, at least one unit a tensor, and forget which units these were; the first two need ``data``, ``loss``.
        batches: that ``snip`` and ``grasp`` look at.

    Differences:
        Counts are exact; the paper's code draws every weight independently, so its density is random too. Borrowed
        shares are measured on the weights as they are, the paper's on others, drawn anew.

    Cost:
        None and no data, but for what ``snip`` and ``grasp`` cost.

    When not to use it:
        On a trained network. It is meant for masks at initialisation, and as the control of every comparison.

    Examples:
        >>> import openwork as ow
        >>> model = ow.build_model("mlp")
        >>> round(ow.prune(model, random(density=0.1)).density, 3)
        0.1

    References:
        Liu et al. The Unreasonable Effectiveness of Random Pruning. ICLR 2022, arXiv 2202.02643.
    """
    share = settle_density(density, structure, 0.05)
    scope = scope or ("layer" if has_regions(structure) else "erk")
    if scope in SOURCES and not has_regions(structure):
        shares = Borrowed(SOURCES[scope](batches), Global(floor=1))
        return Recipe("random", structure, TopK(Random(), shares), OneShot(share), None, where)
    if scope in ("erk+", "layer+") and not has_regions(structure):
        ends = FixedEnds(last=1.0) if scope == "erk+" else FixedEnds(1.0, max(share, 0.2), power=0.0)
        return Recipe("random", structure, TopK(Random(), ends), OneShot(share), None, where)
    return Recipe("random", structure, TopK(Random(), allocation_of(scope, structure)), OneShot(share), None, where)
