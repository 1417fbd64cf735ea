"""DSnoT: dynamic sparse no training (Zhang et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.errors import RecipeError
from openwork.methods.magnitude import magnitude
from openwork.methods.sparsegpt import sparsegpt
from openwork.methods.wanda import wanda
from openwork.rules.swap import MeanSwap
from openwork.stats import InputMoments
from openwork.structure import Element

HOSTS: dict[str, Callable[..., Recipe]] = {"wanda": wanda, "magnitude": magnitude, "sparsegpt": sparsegpt}


def dsnot(
    density: float | None = None,
    structure: Structure = Element(per="row"),
    where: Select = Select(),
    start: Literal["wanda", "magnitude", "sparsegpt"] = "wanda",
    cycles: int = 50,
    threshold: float = 0.1,
    power: float = 1.0,
    same_sign: bool = True,
    unit: Literal["sequence", "token"] = "sequence",
) -> Recipe:
    """Repair the mask of another method without training: swap weights until each row's expected output is right.

    e_r = sum over pruned j of w_rj mu_j; grow the pruned weight with the largest w mu / var^p on the side of e_r, drop
    the kept one of the smallest |w| ||x|| on the other side; e_r moves towards zero.

    Args:
        density: kept share; default 0.5, or what N:M fixes.
        structure: single weights (rows keep their counts) or N:M along the inputs.
        where: which parameters.
        start: whose mask is repaired; of ``sparsegpt`` the mask only, its corrections are dropped.
        cycles: swaps per row, at most.
        threshold: rows whose error is smaller are finished.
        power: of the variance, 0 ignores it.
        same_sign: a swap may not turn the sign of e_r.
        unit: of mu and so of ``threshold``: per sequence as in the published code, or per token.

    Differences:
        ``same_sign`` is on by default for single weights too (off in the published code): matching the mean by
        overshooting made outputs worse. A swap must also lower |e_r| then. Variances are merged exactly over batches
        (the code averages the variances of batches). All layers are repaired; the code skips the MLP by default, use
        ``where``.

    Cost:
        One forward pass and ``cycles`` sweeps over each matrix; no gradients.

    When not to use it:
        Where inputs have mean zero: there is nothing to match. After SparseGPT when its corrections are wanted.

    Examples:
        >>> import torch, openwork as ow
        >>> model, batch = ow.build_model("mlp"), torch.rand(32, 1, 8, 8)
        >>> ow.prune(model, dsnot(density=0.25), data=[batch]).density
        0.25

    References:
        Zhang et al. Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs. ICLR 2024, arXiv 2310.08915.
    """
    if start not in HOSTS:
        raise RecipeError(f"dsnot: start must be one of {', '.join(HOSTS)}, got {start!r}")
    if density is None:
        density = structure.density if structure.density is not None else 0.5
    host = HOSTS[start](density, structure, where)
    rule = MeanSwap(host.rule, InputMoments(), cycles, threshold, power, same_sign, unit)
    return Recipe("dsnot", structure, rule, host.schedule, None, where)
