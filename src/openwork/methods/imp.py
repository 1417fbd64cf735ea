"""Iterative magnitude pruning with rewinding (Frankle and Carbin, 2019; Renda et al., 2020)."""

from __future__ import annotations

import math
from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import Rounds
from openwork.schedules.shapes import check_density
from openwork.structure import Element


def imp(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    rate: float = 0.2,
    rounds: int | None = None,
    rewind: Literal["weights", "lr", "none"] = "weights",
    scope: Literal["auto", "layer", "global"] = "auto",
) -> Recipe:
    """Train, prune a fifth of the survivors by magnitude, rewind the rest to an early checkpoint, repeat.

    After round j the density is density^(j / rounds); with the default rate of 0.2 that is about 0.8^j.

    Args:
        density: kept share after the last round; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        rate: share of the survivors pruned per round, when ``rounds`` is not given.
        rounds: number of rounds.
        rewind: ``weights`` (lottery tickets), ``lr`` (keep weights, replay the learning-rate schedule), ``none``
            (fine-tune on).
        scope: ``auto`` is global, or layer for N:M and per-row structures.

    Differences:
        The rate is adjusted so that the last round meets the density exactly. Masks are nested and counted by index;
        the reference code prunes one weight more per round.

    Cost:
        ``rounds`` trainings.

    When not to use it:
        When one training is all you can afford; ``spode`` or ``gradual_magnitude`` are far cheaper.

    Examples:
        >>> imp(density=0.1).schedule.rounds
        11

    References:
        Frankle, Carbin. The Lottery Ticket Hypothesis. ICLR 2019, arXiv 1803.03635.
        Renda, Frankle, Carbin. Comparing Rewinding and Fine-tuning. ICLR 2020, arXiv 2003.02389.
    """
    share = settle_density(density, structure, 0.1)
    check_density(share, "imp")
    if not 0 < rate < 1:
        raise RecipeError(f"imp: rate must be a share in (0, 1), got {rate}")
    # log(0.64) / log(0.8) is 2.0000000000000004 in floating point, and a third round would not be meant
    count = rounds if rounds is not None else max(1, math.ceil(math.log(share) / math.log(1 - rate) - 1e-9))
    rule = TopK(Magnitude(), allocation_of(scope, structure), nested=True, connected=True)
    return Recipe("imp", structure, rule, Rounds(share, count, rewind), None, where)
