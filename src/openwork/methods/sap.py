"""SAP: sparsity-informed adaptive pruning in rounds (Diao et al., ICLR 2023)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.errors import RecipeError
from openwork.methods._common import has_regions, settle_density
from openwork.rules.adaptive import AdaptivePruning
from openwork.schedules import Rounds
from openwork.structure import Element


def sap(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    rounds: int = 10,
    scope: Literal["neuron", "layer", "global"] = "layer",
    rewind: Literal["weights", "lr", "none"] = "weights",
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
) -> Recipe:
    """Train, prune as much as the PQ index of the weights says they can spare, rewind the rest, repeat.

    I = 1 - d^(1/q - 1/p) |w|_p / |w|_q over the d living weights; r = d (1 + eta)^(-q/(q-p)) (1 - I)^(pq/(q-p)) bounds
    what must stay (Theorem 2); floor(d min(gamma (1 - r/d), beta)) of the smallest go.

    Args:
        density: kept share after the last round; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        rounds: trainings after the first.
        scope: one index per output row, per tensor, or over the model.
        rewind: ``weights`` (to the rewind point, the paper), ``lr`` or ``none``, as in ``imp``.
        p: order of the upper norm.
        q: order of the lower norm, above p.
        eta: how much the pruned may weigh beside the kept; larger prunes more.
        gamma: factor on the share that is pruned.
        beta: largest share that a round prunes.

    Differences:
        The density is met exactly: no round goes below it, and the last one prunes what is missing, or less, in
        proportion to what the regions can spare. Counts are by index, so ties go; at least one unit of every
        region stays where the density allows. Weights come from the last step, not from the best on test data.

    Cost:
        ``rounds`` trainings more.

    When not to use it:
        For one round, where it is layer-wise magnitude with learned shares.

    Examples:
        >>> sap(density=0.2, rounds=4).schedule.rounds
        4

    References:
        Diao et al. Pruning Deep Neural Networks from a Sparsity Perspective. ICLR 2023, arXiv 2302.05601.
    """
    if has_regions(structure):
        raise RecipeError(f"sap: {structure} fixes its own counts, so nothing can adapt; take another structure")
    rule = AdaptivePruning(scope, p, q, eta, gamma, beta)
    share = settle_density(density, structure, 0.1)
    return Recipe("sap", structure, rule, Rounds(share, rounds, rewind, path="rule"), None, where)
