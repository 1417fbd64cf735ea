"""SpODE, one-shot: pruning by a sparsity-indexed ODE (Mo, Shi, Pan, ICML 2023)."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Literal, cast

from openwork.core.annotations import typed
from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.errors import RecipeError, did_you_mean
from openwork.methods._common import has_regions, settle_density
from openwork.rules.spode import SpODE
from openwork.schedules import OneShot
from openwork.schedules.shapes import check_density
from openwork.stats import MaskLoss
from openwork.structure import Element


def spode(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    steps: int = 100,
    radius: float = 1.1,
    polariser: Literal["ohh", "ohm", "oh", "qt", "qtm", "gau", "id"] = "ohh",
    measure: Literal["l1", "l2"] = "l2",
    scope: Literal["auto", "global", "local"] = "auto",
    batches: int = 1,
    density_of: Literal["units", "parameters"] = "units",
    preset: Literal["default", "paper"] = "default",
    **options: Any,
) -> Recipe:
    """Let the mask of a trained network travel to the target density along the locally loss-optimal direction.

    With e = -grad E(m), g = -grad G(m) and e_perp the part of e orthogonal to g, every step of size dt moves the mask
    by F dt, F = g / |g|^2 + sqrt(r^2 - 1) / |g| e_perp / |e_perp|, which solves min grad E . F s.t. g . F = 1,
    |F| <= r / |g|. The energy E is the loss at the polarised mask, G the soft density. Weights stay frozen; pruned
    units may return.

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together; one mask entry per unit.
        where: which parameters.
        steps: Euler steps N, one batch each; raise it with 1 / density.
        radius: r > 1; r -> 1 is global magnitude pruning.
        polariser: ``ohh`` binary straight-through (default), ``ohm``, ``oh``, ``qt``, ``qtm``, ``gau``, ``id``.
        measure: soft density, ``l2`` (paper) or ``l1``.
        scope: where densities hold; ``auto`` is global, or local for N:M and per-row structures.
        batches: mini-batches whose mean loss is the energy of one step.
        density_of: ``parameters`` reads ``density`` as the share of parameters left when both neighbouring layers lose
            their channels: sqrt(density) of the units is kept (the paper's structured setting: ``InputChannel()``,
            local).
        preset: ``paper`` is the official code: the polariser follows G, and layers may empty.
        options: further fields of ``openwork.rules.spode.SpODE`` (path, radius_path, field_scope, momentum,
            density_from, clamp, floor, sizes).

    Differences:
        The direction is computed in its well-conditioned form with float64 norms; the polariser follows the scheduled
        density (``density_from="measure"`` is the code's choice); biases are never maskable; counts are exact; one
        unit stays in every tensor (``floor=0`` allows layers to empty); one ranking of coupled channels evens out their
        sizes (``sizes="raw"`` is the code's, which cuts every layer by itself).

    Cost:
        N forward and backward passes; memory of one mask and one gradient.

    When not to use it:
        Without data or on an untrained network.

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> result = ow.prune(model, spode(density=0.25, steps=5), data=[batch], loss=F.cross_entropy)
        >>> result.density, len(result.log[0]["path"])
        (0.25, 5)

    References:
        Mo, Shi, Pan. Pruning via Sparsity-indexed ODE: A Continuous Sparsity Viewpoint. ICML 2023, PMLR 202.
    """
    share = settle_density(density, structure, 0.1)
    if density_of not in ("units", "parameters") or preset not in ("default", "paper"):
        raise RecipeError(
            f"spode: density_of must be 'units' or 'parameters' and preset 'default' or 'paper', got {density_of!r} "
            f"and {preset!r}"
        )
    if density_of == "parameters":
        check_density(share, "spode")
        share = math.sqrt(share)
    if preset == "paper":
        options = {"density_from": "measure", "floor": 0, "sizes": "raw", **options}
    path = {"steps": steps, "radius": radius, "polariser": polariser, "measure": measure}
    rule = path_rule(structure, scope, **{"energy": MaskLoss(batches=batches), **path, **options})
    return Recipe("spode", structure, rule, OneShot(share), None, where)


def path_rule(structure: Structure, scope: str, **options: Any) -> SpODE:
    """The rule that the one-shot and the iterative variant share.

    Raises:
        RecipeError: an unknown option, a value of another type than its field, or a global scope for a structure
            with quotas of its own.
    """
    known = [f.name for f in fields(SpODE)]
    for name in options:
        if name not in known:
            raise RecipeError(f"spode has no option {name!r}; {did_you_mean(name, known)}")
    options = typed("spode", SpODE, options)  # ``**options`` of the methods have no annotations of their own
    if scope == "auto":
        scope = "local" if has_regions(structure) else "global"
    if scope == "global" and has_regions(structure):
        raise RecipeError(f"{structure} has quotas of its own, so scope must be 'local', got 'global'")
    if scope == "global":
        options = {"floor": 1, **options}
    return SpODE(scope=cast("Literal['global', 'local']", scope), **options)
