"""What several methods settle the same way."""

from __future__ import annotations

from openwork.allocation import ErdosRenyi, Global, Uniform
from openwork.core.protocols import Allocation, Structure
from openwork.core.select import Rounding
from openwork.errors import RecipeError
from openwork.structure import Element


def settle_density(density: float | None, structure: Structure, default: float) -> float:
    """The density asked for; else the one that the structure fixes (N:M); else the method's default."""
    if density is not None:
        return density
    return structure.density if structure.density is not None else default


def has_regions(structure: Structure) -> bool:
    """True for structures with quotas of their own (N:M, per row), which cannot be ranked over the whole model."""
    return structure.density is not None or structure == Element(per="row")


def allocation_of(
    scope: str, structure: Structure, rounding: Rounding = "ceil", at_least: int | None = None
) -> Allocation:
    """``"layer"``, ``"global"`` or ``"erk"`` as an allocation; ``"auto"`` is global, or layer where regions rule.

    ``at_least`` units stay in every layer under ``"layer"`` and ``"erk"``; None is each allocation's own floor (0, 1).

    Raises:
        RecipeError: an unknown scope, or one over several tensors for a structure with quotas of its own. Said here,
            since a method that trains first would say it hours later.
    """
    if scope == "auto":
        scope = "layer" if has_regions(structure) else "global"
    if scope in ("global", "erk") and has_regions(structure):
        raise RecipeError(f"{structure} has quotas of its own, so scope must be 'layer', got {scope!r}")
    if scope == "layer":
        return Uniform(rounding, at_least or 0)
    if scope == "global":
        return Global(rounding)
    if scope == "erk":
        return ErdosRenyi(rounding=rounding, at_least=1 if at_least is None else at_least)
    raise RecipeError(f"scope must be 'layer', 'global' or 'erk', got {scope!r}")
