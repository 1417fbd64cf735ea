"""Random search over sparse architectures, the neutral baseline of every search (Farahani, 2024)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.random_search import RandomSearch
from openwork.schedules import OneShot
from openwork.stats import LossAtMasks
from openwork.structure import Element


def random_search(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    draws: int = 500,
    batches: int = 1,
    scope: Literal["layer", "erk", "global"] = "layer",
    mode: Literal["train", "eval"] = "train",
) -> Recipe:
    """Draw many random masks of one density, keep the one with the lowest loss at the present weights, train it.

    Args:
        density: kept share of units; default 0.5.
        structure: what is drawn; the paper draws nodes, which are ``ow.channels(example=x)`` or ``Row()`` here.
        where: which parameters.
        draws: masks that are tried; all there are when there are no more.
        batches: of the search, the same for every mask. Never of the test set.
        scope: shares of the layers: equal (``layer``), ``erk``, or drawn over the whole model (``global``).
        mode: ``train`` normalises by the statistics of each batch, as an untrained network needs.

    Differences:
        Only the paper's abstract was at hand: the number of draws, equal shares and the batches are choices made here.

    Cost:
        ``draws`` x ``batches`` forward passes; no backward pass.

    When not to use it:
        To find a good network. It is the control that a search must beat: where random networks can be trained at all,
        the best of them at initialisation trains no better than any of them.

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> result = ow.prune(model, random_search(density=0.5, structure=ow.Row(), draws=8), data=[batch],
        ...                   loss=F.cross_entropy)
        >>> search = result.log[-1]["search"]
        >>> len(search["losses"]), min(search["losses"]) == search["losses"][search["best"]]
        (8, True)

    References:
        Rezsa Farahani. Random Search as a Baseline for Sparse Neural Network Architecture Search. 2024,
        arXiv 2403.08265.
    """
    share = settle_density(density, structure, 0.5)
    rule = RandomSearch(LossAtMasks(mode, batches), allocation_of(scope, structure), draws)
    return Recipe("random_search", structure, rule, OneShot(share), None, where)
