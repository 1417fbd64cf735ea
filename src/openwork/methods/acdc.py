"""AC/DC: alternating compressed and decompressed training (Peste et al., NeurIPS 2021)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.relax import Masking
from openwork.rules.topk import TopK
from openwork.schedules import Phases, Stretch, alternating
from openwork.structure import Element

IMAGENET = alternating(100, warmup=10, period=5, last_dense=10, final_sparse=15)
"""The paper's 100-epoch table: 10 dense, six 5 + 5 cycles, 5 sparse, 10 dense, 15 sparse."""

CIFAR = alternating(200, warmup=10, period=20, final_sparse=30)
"""The paper's 200-epoch table: 10 dense, seven phases of 20, sparse first, 20 dense, 30 sparse."""


def acdc(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 1000,
    scope: Literal["auto", "layer", "global", "erk"] | None = None,
    on_decompress: Literal["zero", "keep"] = "zero",
    phases: Literal["imagenet", "cifar"] | tuple[Stretch, ...] = "imagenet",
) -> Recipe:
    """Train from scratch, alternating sparse and dense phases, and end sparse.

    On entering a sparse phase the mask keeps the largest |w| (or block norms); on entering a dense one every weight may
    move again and the optimiser forgets its moments.

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        steps: optimiser steps of the whole training.
        scope: global for single weights (the paper), layer otherwise; ``erk`` for Erdos-Renyi-Kernel shares.
        on_decompress: pruned weights restart at ``zero`` (the paper), or ``keep`` the value they had when they were
            masked (the variant that SequentialAttention++ compares against on Criteo).
        phases: the table of the paper's ImageNet or CIFAR-100 runs, or kinds and shares of the training of your own
            (``openwork.schedules.alternating`` makes them from lengths); must end sparse.

    Differences:
        Phases are shares of the steps, not whole epochs; exact counts instead of a quantile threshold. The dense
        network at the end of the last dense phase is not kept.

    Cost:
        One selection per cycle; dense compute throughout unless sparse kernels run the sparse phases.

    When not to use it:
        Without a full training run to spend.

    Examples:
        >>> recipe = acdc(density=0.1, steps=100)
        >>> [b for b, s in zip(recipe.schedule.bounds, recipe.schedule.stretches) if s.phase == "sparse"][-2:]
        [(70, 75), (85, 100)]

    References:
        Peste, Iofinova, Vladu, Alistarh. AC/DC. NeurIPS 2021, arXiv 2106.12379.
    """
    if on_decompress not in ("zero", "keep"):
        raise RecipeError(f"acdc: on_decompress must be 'zero' or 'keep', got {on_decompress!r}")
    tables = {"imagenet": IMAGENET, "cifar": CIFAR}
    if isinstance(phases, str) and phases not in tables:
        raise RecipeError(f"acdc: phases must be 'imagenet', 'cifar' or stretches, got {phases!r}")
    share = settle_density(density, structure, 0.1)
    scope = scope or ("global" if structure == Element() else "layer")
    rule = TopK(Magnitude(), allocation_of(scope, structure))
    schedule = Phases(share, steps, tables[phases] if isinstance(phases, str) else phases, restart="dense")
    return Recipe("acdc", structure, rule, schedule, Masking() if on_decompress == "keep" else None, where)
