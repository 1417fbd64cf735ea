"""First-order Taylor pruning (Molchanov et al., 2017, 2019)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Taylor
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import UnitImportance
from openwork.structure import Element


def taylor(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    batches: int = 8,
    scope: Literal["auto", "layer", "global"] = "auto",
) -> Recipe:
    """Keep the units whose removal changes the loss most to first order, on a trained network.

    score(u) = sum over batches of (sum over u of w dL/dw)^2 (eq. 8 of the 2019 paper), so that batches cannot cancel.

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        batches: scoring batches, in eval mode.
        scope: ``auto`` is global, or layer for N:M and per-row structures.

    Differences:
        One decision instead of a few units after every few steps of fine-tuning; scored in eval mode.

    Cost:
        One forward and backward pass per batch.

    When not to use it:
        On a network trained to zero loss: its gradients are noise (``magnitude`` does better there).

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
    rule = TopK(Taylor(UnitImportance(batches)), allocation_of(scope, structure))
    return Recipe("taylor", structure, rule, OneShot(share), None, where)
