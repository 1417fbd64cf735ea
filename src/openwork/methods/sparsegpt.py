"""SparseGPT: layer-wise optimal brain surgery in one pass over the columns (Frantar and Alistarh, ICML 2023)."""

from __future__ import annotations

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.methods._common import settle_density
from openwork.rules.layer_surgeon import LayerSurgeon
from openwork.schedules import OneShot
from openwork.stats import InputGram
from openwork.structure import Element


def sparsegpt(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    block: int = 128,
    damp: float = 0.01,
    double: bool = False,
    batches: int | None = None,
) -> Recipe:
    """Remove the weights whose loss changes a layer's output least, and move the others to make up for it.

    H = X X^T + damp mean(diag) I, H^-1 = U^T U; score w^2 / U_jj^2 on weights already corrected, compared over all rows
    of ``block`` columns (N:M: inside each run); the error (w_j - w^_j) / U_jj is taken out of the columns to the right
    along U_j. The change of all outputs is exactly the sum of the squared errors.

    Args:
        density: kept share; default 0.5, or what N:M fixes.
        structure: single weights, N:M, or blocks such as ``Block(4, 1)`` and ``Block(32, 32)`` for faster kernels.
        where: which parameters.
        block: columns over which scores are compared, and between two lazy updates.
        damp: share of the mean diagonal that is added to H; raised ten times, at most three times, where H is singular.
        double: float64 for H and the solution.
        batches: calibration batches; None reads the whole data once.

    Differences:
        Counts are exact (the reference code removes one more entry per column block, and all ties). U comes from one
        Cholesky factorisation of the reversed H and a triangular inverse: the same matrix at half the work. Inputs
        that never fire get their weights zeroed, as in the paper's code. Blocks are an addition: the score of a block
        is the sum over its entries.

    Cost:
        One forward pass for X X^T; O(in^3 + out in^2) per layer; memory in^2 per distinct input.

    When not to use it:
        On matrices with tens of thousands of inputs and little memory; without calibration data.

    Examples:
        >>> import torch, openwork as ow
        >>> model, batch = ow.build_model("mlp"), torch.randn(32, 1, 8, 8)
        >>> ow.prune(model, sparsegpt(density=0.25), data=[batch]).density
        0.25

    References:
        Frantar, Alistarh. SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot. ICML 2023,
        arXiv 2301.00774.
    """
    share = settle_density(density, structure, 0.5)
    rule = LayerSurgeon(InputGram(batches, double), block, damp)
    return Recipe("sparsegpt", structure, rule, OneShot(share), None, where)
