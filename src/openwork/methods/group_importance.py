"""One-shot ranking of coupled units, slice by slice, by one of the criteria of structural pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from openwork.core.protocols import Criterion, Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import GeometricMedian, GroupHessian, Magnitude, NormScale, Random, Taylor
from openwork.criteria.grouped import Grouped, Normalise, Over, Sides
from openwork.errors import RecipeError, did_you_mean
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import FisherDiagonal, UnitImportance
from openwork.structure import Element

Word = Literal["l1", "l2", "taylor", "bn_scale", "fpgm", "hessian", "random"]
MAKE: dict[str, Callable[[int], Criterion]] = {
    "l1": lambda _: Magnitude("l1"),
    "l2": lambda _: Magnitude("l2"),
    "taylor": lambda batches: Taylor(UnitImportance(batches)),
    "bn_scale": lambda _: NormScale(),
    "fpgm": lambda _: GeometricMedian(),
    "hessian": lambda batches: GroupHessian(FisherDiagonal(samples=16 * batches)),
    "random": lambda _: Random(),
}


def group_importance(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    criterion: Word = "l2",
    over: Over = "mean",
    normalise: Normalise = "mean",
    sides: Sides = "both",
    biases: bool = False,
    scope: Literal["auto", "layer", "global"] = "auto",
    batches: int = 8,
) -> Recipe:
    """Keep the coupled units with the largest importance, put together from the importance of their slices.

    I(c) = over_s v_s(c) over the slices s of channel c (filters, scales of norms, columns of readers), then divided by
    the mean (or maximum) of the group, so that groups compare in one ranking.

    Args:
        density: kept share of units; default 0.1.
        structure: ``ow.channels(example=x)`` and its relatives; others have one slice.
        where: which parameters.
        criterion: ``l1``, ``l2``; ``taylor`` (squared sum of w dL/dw over the unit, batch by batch); ``bn_scale``
            (network slimming's |gamma|); ``fpgm`` (distance to the other filters of the group); ``hessian``
            (w^2 E[g^2] / 2); ``random``.
        over: ``sum``, ``mean``, ``max``, ``l2``, ``first`` or ``geometric`` over the slices; ``taylor``, ``bn_scale``
            and ``fpgm`` choose theirs.
        normalise: ``none``, ``mean``, ``max``, or ``size`` (parameters behind a unit).
        sides: slices that make units, that read them, or both.
        biases: count biases as slices.
        scope: ``auto`` is global, or layer for structures with quotas of their own.
        batches: scoring batches of ``taylor``; ``hessian`` takes 16 single samples for each.

    Differences:
        DepGraph's toolkit sums |w|^p without the root and can regularise while training; here a slice has the norm of
        the criterion, and nothing is trained. Slimming's L1 penalty on the scales is left to the training before.

    Cost:
        None without data; one backward pass per batch or per sample otherwise.

    When not to use it:
        ``bn_scale`` on networks whose scales were never trained towards zero ranks little more than noise.

    Examples:
        >>> import torch, openwork as ow
        >>> model, x = ow.build_model("resnet8", (1, 28, 28)), torch.zeros(1, 1, 28, 28)
        >>> recipe = group_importance(structure=ow.channels(example=x), criterion="fpgm")
        >>> abs(ow.prune(model, recipe, target={"macs": 0.5}).manifest["budget"]["share"] - 0.5) < 0.005
        True

    References:
        Fang, Ma, Song, Mi, Wang. DepGraph: Towards Any Structural Pruning. CVPR 2023, arXiv 2301.12900. Criteria: Liu
        et al., network slimming, ICCV 2017; He et al., FPGM, CVPR 2019.
    """
    share = settle_density(density, structure, 0.1)
    if criterion not in MAKE:
        raise RecipeError(f"group_importance: unknown criterion {criterion!r}; {did_you_mean(str(criterion), MAKE)}")
    made = MAKE[criterion](batches)
    ranked = Grouped(made, over, normalise, sides, biases)
    return Recipe(
        "group_importance", structure, TopK(ranked, allocation_of(scope, structure)), OneShot(share), None, where
    )
