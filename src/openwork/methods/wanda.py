"""Wanda: weights times activations (Sun et al., ICLR 2024)."""

from __future__ import annotations

from openwork.allocation import Uniform
from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import WeightTimesInput
from openwork.methods._common import settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import InputSquares
from openwork.structure import Element


def wanda(
    density: float | None = None,
    structure: Structure = Element(per="row"),
    where: Select = Select(),
    batches: int | None = None,
) -> Recipe:
    """Keep, in every output row, the weights with the largest product of size and input norm; nothing is updated.

    score(w_ij) = |w_ij| * ||x_j||_2 over all calibration tokens; a unit takes the l2 norm of its entries.

    Args:
        density: kept share; default 0.5, or what N:M fixes.
        structure: the paper compares inside each row (``Element(per="row")``) or inside runs of N:M.
        where: which parameters.
        batches: calibration batches; None reads the whole data once.

    Differences:
        None for rows and N:M. Every row keeps exactly in - floor((1 - density) in) weights; ties go to the lower
        index. Blocks, single weights compared over the tensor, and coupled units, weighed where they are read, are
        additions.

    Cost:
        One forward pass over the calibration data and one selection per layer.

    When not to use it:
        Where a few more minutes are affordable and sparsity is high: ``sparsegpt`` corrects the survivors.

    Examples:
        >>> import torch, openwork as ow
        >>> model, batch = ow.build_model("mlp"), torch.randn(32, 1, 8, 8)
        >>> ow.prune(model, wanda(density=0.25), data=[batch]).density
        0.25

    References:
        Sun, Liu, Bair, Kolter. A Simple and Effective Pruning Approach for Large Language Models. ICLR 2024,
        arXiv 2306.11695.
    """
    share = settle_density(density, structure, 0.5)
    rule = TopK(WeightTimesInput(InputSquares(batches)), Uniform())
    return Recipe("wanda", structure, rule, OneShot(share), None, where)
