"""ECoFLaP: coarse layer shares from forward passes, fine pruning inside the layers (Sung et al., ICLR 2024)."""

from __future__ import annotations

from openwork.allocation.zeroth import ZerothOrder
from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import WeightTimesInput
from openwork.errors import RecipeError
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import InputSquares
from openwork.stats.zeroth import ZerothNorms
from openwork.structure import Element


def ecoflap(
    density: float | None = None,
    structure: Structure = Element(per="row"),
    where: Select = Select(),
    batches: int | None = 8,
    eps: float = 1e-3,
    p_max: float | None = None,
) -> Recipe:
    """Give every layer a share of its own from an estimate of its gradient norm, then prune it as Wanda does.

    G_l = sum |L(W_l + eps z) - L(W_l - eps z)| / (2 eps); kept counts grow from (1 - p_max) n_l in proportion to G_l
    until they add up exactly.

    Args:
        density: kept share of all targeted weights; default 0.5.
        structure: single weights, compared inside rows or over the layer; N:M leaves no room for shares.
        where: which parameters.
        batches: calibration batches of the first stage and the second; None reads the whole data once.
        eps: length of the step along the noise.
        p_max: largest sparsity of a layer; None: the asked one plus 0.1.

    Differences:
        Where rounding gives too many entries they are taken away (the published code adds). Weights are never written
        while measuring, so nothing has to be restored. The second stage measures the dense network; use
        ``ow.prune_blockwise`` with the shares for the sequential order.

    Cost:
        2 forward passes per layer and batch, at the memory of inference.

    When not to use it:
        With N:M. With so few batches that the noise of the estimate hides the layers' differences.

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> round(ow.prune(model, ecoflap(density=0.25), data=[batch], loss=F.cross_entropy).density, 3)
        0.25

    References:
        Sung, Yoon, Bansal. ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models. ICLR 2024,
        arXiv 2310.02998.
    """
    if structure.density is not None and density != 1:
        raise RecipeError(f"ecoflap gives layers unequal shares, but {structure} fixes them; use wanda")
    share = 0.5 if density is None else density
    rule = TopK(WeightTimesInput(InputSquares(batches)), ZerothOrder(ZerothNorms(batches, eps), p_max))
    return Recipe("ecoflap", structure, rule, OneShot(share), None, where)
