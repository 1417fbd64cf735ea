"""First-order Taylor pruning (Molchanov et al., 2017, 2019)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Saliency
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import LossGradient
from openwork.structure import Element


def taylor(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    batches: int = 8,
    scope: Literal["auto", "layer", "global"] = "auto",
) -> Recipe:
    """Keep the units whose removal changes the loss most to first order, on a trained network.

    score(u) = (sum over u of w dL/dw)^2 (eq. 8 of the 2019 paper).

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        batches: scoring batches, in eval mode.
        scope: ``auto`` is global, or layer for N:M and per-row structures.

    Differences:
        The gradient is summed over the batches before squaring, as in SNIP; the ranking equals SNIP's.

    Cost:
        One forward and backward pass per batch.

    When not to use it:
        On a network trained to zero loss: its gradients are noise.

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> recipe = taylor(density=0.5, structure=ow.Block(4, 4), batches=1)
        >>> round(ow.prune(model, recipe, data=[batch], loss=F.cross_entropy).density, 2)
        0.5

    References:
        Molchanov et al. Importance Estimation for Neural Network Pruning. CVPR 2019, arXiv 1906.10771.
    """
    share = settle_density(density, structure, 0.1)
    rule = TopK(Saliency(LossGradient(batches), squared=True), allocation_of(scope, structure))
    return Recipe("taylor", structure, rule, OneShot(share), None, where)
