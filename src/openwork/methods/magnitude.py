"""Magnitude pruning: keep the largest (Han et al., 2015)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.structure import Element


def magnitude(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    scope: Literal["layer", "global", "erk"] = "layer",
    norm: Literal["l1", "l2"] = "l2",
) -> Recipe:
    """Keep the units with the largest norm, in one shot; the baseline that every other method must beat.

    score(u) = ||w_u||_2 (or l1); kept = n - floor((1 - density) n), ties to the lower index.

    Args:
        density: kept share of units in (0, 1]; default 0.1, or what N:M fixes.
        structure: what lives and dies together.
        where: which parameters.
        scope: ``layer`` keeps the same share everywhere, ``global`` ranks all units of the model together, ``erk``
            gives Erdos-Renyi-Kernel shares.
        norm: of a unit of several weights.

    Differences:
        The count is exact where threshold code drops or keeps all ties. LAMP's scores and a density for each named
        layer are left out.

    Cost:
        One selection per tensor; no data.

    When not to use it:
        At high sparsity without fine-tuning, and with ``global`` when layers differ much in scale: a layer can empty.

    Examples:
        >>> import openwork as ow
        >>> model = ow.build_model("mlp")
        >>> ow.prune(model, magnitude(density=0.25)).density
        0.25

    References:
        Han, Pool, Tran, Dally. Learning both Weights and Connections for Efficient Neural Networks. NeurIPS 2015.
    """
    share = settle_density(density, structure, 0.1)
    rule = TopK(Magnitude(norm), allocation_of(scope, structure))
    return Recipe("magnitude", structure, rule, OneShot(share), None, where)
