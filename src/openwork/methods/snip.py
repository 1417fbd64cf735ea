"""SNIP: connection sensitivity (Lee et al., ICLR 2019)."""

from __future__ import annotations

from typing import Literal

from openwork.core.measuring import Mode
from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Saliency
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import Repeat, TopK
from openwork.schedules import OneShot
from openwork.stats import LossGradient
from openwork.structure import Element


def snip(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    batches: int = 1,
    rounds: int = 1,
    scope: Literal["auto", "layer", "global"] = "auto",
    mode: Mode = "eval",
    absolute: bool = False,
) -> Recipe:
    """Keep the connections whose removal would change the loss most, seen on a few batches, usually before training.

    score(u) = |sum over u of w dL/dw|, the derivative of the loss with respect to a mask on u (eq. 4).

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        batches: scoring batches; ten samples per class and more make it stable.
        rounds: more than 1 re-scores the pruned net on an exponential path (iterative SNIP).
        scope: ``auto`` is global, or layer for N:M and per-row structures.
        mode: train/eval mode while scoring; running statistics are untouched either way.
        absolute: sum |dL/dw| over batches instead of dL/dw, which can cancel.

    Differences:
        Biases are not pruned (the official code masks them as well).

    Cost:
        One forward and backward pass per batch and round; memory of one gradient.

    When not to use it:
        At extreme sparsity (it empties layers where SynFlow does not), or on dead layers (refused by name).

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> ow.prune(model, snip(density=0.25), data=[batch], loss=F.cross_entropy).density
        0.25

    References:
        Lee, Ajanthan, Torr. SNIP. ICLR 2019, arXiv 1810.02340.
    """
    share = settle_density(density, structure, 0.1)
    rule = TopK(Saliency(LossGradient(batches, absolute, mode)), allocation_of(scope, structure))
    return Recipe("snip", structure, Repeat(rule, rounds) if rounds != 1 else rule, OneShot(share), None, where)
