"""Magnitude pruning: keep the largest (Han et al., 2015)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Lamp, Magnitude
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, has_regions, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.structure import Element


def magnitude(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    scope: Literal["layer", "global", "erk", "lamp"] = "layer",
    norm: Literal["l1", "l2"] = "l2",
) -> Recipe:
    """Keep the units with the largest norm, in one shot; the baseline that every other method must beat.

    score(u) = ||w_u||_2 (or l1); kept = n - floor((1 - density) n), ties to the lower index.

    Args:
        density: kept share of units in (0, 1]; default 0.1, or what N:M fixes.
        structure: what lives and dies together.
        where: which parameters.
        scope: ``layer`` keeps the same share everywhere, ``global`` ranks all units of the model together, ``erk``
            gives Erdos-Renyi-Kernel shares, ``lamp`` ranks all units by LAMP's scores ``|w_u|^2 / sum |w_v|^2`` over
            the units of the layer that are no smaller, which empties no layer.
        norm: of a unit of several weights.

    Differences:
        The count is exact where threshold code drops or keeps all ties. A density for each named layer is left out.

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
        Han, Pool, Tran, Dally. Learning both Weights and Connections for Efficient Neural Networks. NeurIPS 2015. Lee,
        Park, Mo, Ahn, Shin. Layer-Adaptive Sparsity for the Magnitude-Based Pruning. ICLR 2021.
    """
    share = settle_density(density, structure, 0.1)
    if scope == "lamp" and has_regions(structure):
        raise RecipeError(f"{structure} has quotas of its own, so scope must be 'layer', got 'lamp'")
    criterion = Lamp(norm) if scope == "lamp" else Magnitude(norm)
    rule = TopK(criterion, allocation_of("global" if scope == "lamp" else scope, structure))
    return Recipe("magnitude", structure, rule, OneShot(share), None, where)
