"""Beta-Rank: filter norms weighed by the deviation of their outputs (Homayounfar et al., 2023)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import BetaRank
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats.deviations import DeviationRatios, Ratio
from openwork.structure import Filter


def beta_rank(
    density: float | None = None,
    structure: Structure = Filter(),
    where: Select = Select(),
    ratio: Ratio = "out_over_in",
    scope: Literal["layer", "global"] = "layer",
    batches: int = 1,
) -> Recipe:
    """Keep the filters whose norm times output deviation over input deviation is largest, layer by layer.

    R_k = ||f_k||_1 beta_k, beta_k the mean over positions p of sigma_out(k, p) / sigma_in(p): the deviation of one
    output over the batch, and that of the patch under it over the batch and the patch.

    Args:
        density: kept share; default 0.5.
        structure: filters, ``ow.channels(example=x)``, or anything else (a weight then counts |w| beta of its filter).
        where: which parameters.
        ratio: ``out_over_in`` is what the published code computes, ``in_over_out`` what its printed equation says, with
            sigma_in / sigma_out in the place of beta.
        scope: the same share in every layer (the paper), or one ranking.
        batches: averaged over so many batches; the paper uses one.

    Differences:
        Positions are those of the padded input and the layer's own stride; the published code cuts patches along the
        channels, without padding, and skips what falls outside. Scores are not brought to [0, 1] in a layer: inside a
        layer this changes nothing. The rescaling of surviving weights in the published ResNet code is left out.
        Fine-tuning goes on from the BatchNorm rows of kept channels instead of fresh ones.

    Cost:
        One forward pass and two convolutions with ones per layer.

    When not to use it:
        On batches of a few samples: deviations are then noise.

    Examples:
        >>> import torch, openwork as ow
        >>> model, x = ow.build_model("lenet"), torch.randn(16, 1, 28, 28)
        >>> ow.prune(model, beta_rank(0.5), data=[x]).density
        0.5

    References:
        Homayounfar, Koohi-Moghadam, Rawassizadeh, Vardhanabhuti. Beta-Rank: A Robust Convolutional Filter Pruning
        Method For Imbalanced Medical Image Analysis. 2023, arXiv 2304.07461.
    """
    rule = TopK(BetaRank(DeviationRatios(batches, ratio)), allocation_of(scope, structure, at_least=1))
    return Recipe("beta_rank", structure, rule, OneShot(settle_density(density, structure, 0.5)), None, where)
