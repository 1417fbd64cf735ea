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
from openwork.schedules import Phases, Stretch
from openwork.structure import Element

IMAGENET = (
    Stretch("dense", 0.10),
    *(Stretch(kind, 0.05) for _ in range(6) for kind in ("sparse", "dense")),
    Stretch("sparse", 0.05),
    Stretch("dense", 0.10),
    Stretch("sparse", 0.15),
)
"""The paper's 100-epoch table: 10 dense, six 5 + 5 cycles, 5 sparse, 10 dense, 15 sparse."""


def acdc(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 1000,
    scope: Literal["auto", "layer", "global", "erk"] | None = None,
    on_decompress: Literal["zero", "keep"] = "zero",
    phases: tuple[Stretch, ...] = IMAGENET,
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
        phases: kinds and shares of the training; must end sparse.

    Differences:
        Phases are shares of the steps, not whole epochs; exact counts instead of a quantile threshold.

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
    share = settle_density(density, structure, 0.1)
    scope = scope or ("global" if structure == Element() else "layer")
    rule = TopK(Magnitude(), allocation_of(scope, structure))
    schedule = Phases(share, steps, phases, restart="dense")
    return Recipe("acdc", structure, rule, schedule, Masking() if on_decompress == "keep" else None, where)
