"""Global magnitude pruning with a minimum per layer (Gupta et al., 2022)."""

from __future__ import annotations

from openwork.allocation import Global, Uniform
from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude
from openwork.methods._common import has_regions, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import Cubic, OneShot
from openwork.structure import Element


def global_mp(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    minimum: float = 0.0005,
    begin: int | None = None,
    end: int | None = None,
    every: int = 100,
) -> Recipe:
    """One threshold over the whole network, with a minimum of weights that every layer keeps.

    Every layer keeps its top min(n_l, floor(minimum N)) units unconditionally; the rest of round(density N) units goes
    to the globally largest of the others.

    Args:
        density: kept share of all targeted units; default 0.1.
        structure: what lives and dies together; N:M and per-row structures are pruned layer-wise.
        where: which parameters.
        minimum: the floor of every layer as a share of all units (the paper's MT, 0.05 percent); 0 is plain Global MP.
        begin: with ``end``: gradual, on a cubic curve between these steps (needs ``ow.attach``).
        end: see ``begin``.
        every: steps between gradual updates.

    Differences:
        The paper's code rescales layer sparsities in a loop until the floor holds; topping up is exact without a loop
        and equals plain Global MP when no layer is short. It prunes one weight less than asked; this prunes exactly.

    Cost:
        One selection over all weights; no data.

    When not to use it:
        For networks without normalisation whose layers differ much in scale.

    Examples:
        >>> import openwork as ow
        >>> model = ow.build_model("mlp")
        >>> ow.prune(model, global_mp(density=0.125)).density
        0.125

    References:
        Gupta et al. Is Complexity Required for Neural Network Pruning? arXiv 2209.14624.
    """
    share = settle_density(density, structure, 0.1)
    allocation = Uniform("nearest") if has_regions(structure) else Global("nearest", floor_share=minimum)
    rule = TopK(Magnitude(), allocation)
    if end is None:
        return Recipe("global_mp", structure, rule, OneShot(share), None, where)
    return Recipe("global_mp", structure, rule, Cubic(share, begin or 0, end, every), None, where)
