"""WoodFisher: second-order pruning with an update of the survivors (Singh and Alistarh, NeurIPS 2020)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.obs import BrainSurgeon
from openwork.rules.topk import Repeat
from openwork.schedules import Cubic, OneShot
from openwork.stats import SampleGradients
from openwork.structure import Element


def woodfisher(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    samples: int = 400,
    batch: int = 1,
    block: int = 2000,
    damp: float = 1e-5,
    update: bool = True,
    joint: bool = False,
    rounds: int = 1,
    scope: Literal["auto", "layer", "global"] = "auto",
    begin: int | None = None,
    end: int | None = None,
    every: int = 100,
) -> Recipe:
    """Remove the weights that an empirical Fisher calls cheapest, and move the others to make up for them.

    F = damp I + 1/N sum g_i g_i^T per block of consecutive weights; saliency w_q^2 / (2 [F^-1]_qq); survivors move by
    F^-1 v, v_q = -w_q / [F^-1]_qq on what is removed.

    Args:
        density: kept share; default 0.1.
        structure: single weights, or N:M.
        where: which parameters.
        samples: N, number of gradients.
        batch: inputs per gradient; 1 is the empirical Fisher proper, the paper's ImageNet runs average 400.
        block: entries per block of F.
        damp: added to the diagonal of F.
        update: move the survivors; False only scores (the paper's ablation).
        joint: solve for all removals of a block together instead of adding up single-weight updates.
        rounds: prune in this many parts with F measured anew before each (``recompute_num``).
        scope: where scores are compared.
        begin: with ``end``: gradual, on a cubic curve between these steps (needs ``ow.attach`` with data and loss).
        end: see ``begin``.
        every: steps between gradual updates.

    Differences:
        F^-1 comes from one Cholesky factorisation of an N x N matrix per block instead of N rank-one updates: the same
        matrix, in float64. Counts are exact. Left out: a Fisher of labels drawn from the model, a factor on the update,
        the first-order term of WoodTaylor, and scores divided by operations.

    Cost:
        N gradients, kept in memory as N rows per tensor (4 N bytes per weight), and one block at a time (32 N bytes per
        entry); more than is free is refused before the first gradient. O(N^2) per weight.

    When not to use it:
        Before training: the Fisher describes a minimum. On models whose N gradients do not fit in memory.

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> ow.prune(model, woodfisher(density=0.25, samples=8), data=[batch], loss=F.cross_entropy).density
        0.25

    References:
        Singh, Alistarh. WoodFisher. NeurIPS 2020, arXiv 2004.14340.
    """
    share = settle_density(density, structure, 0.1)
    surgeon = BrainSurgeon(SampleGradients(samples, batch), allocation_of(scope, structure), block, damp, update, joint)
    rule = Repeat(surgeon, rounds) if rounds != 1 else surgeon
    schedule = OneShot(share) if end is None else Cubic(share, begin or 0, end, every)
    return Recipe("woodfisher", structure, rule, schedule, None, where)
