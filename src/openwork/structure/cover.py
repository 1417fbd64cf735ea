"""Model + structure + selection -> partitions, with a row of coverage for every parameter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from openwork.core.protocols import Partition, Structure
from openwork.core.targets import Select, find_targets
from openwork.errors import StructureError


@dataclass(frozen=True)
class Covered:
    """What happened to one parameter: pruned with so many units, or skipped for a reason.

    ``groups`` names the partitions that lie in it, where these are not named like the parameter.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    units: int = 0
    skipped: str = ""
    groups: tuple[str, ...] = ()


def partition(
    model: nn.Module, structure: Structure, where: Select, *, skeleton: bool = False, inside: tuple[str, ...] = ()
) -> tuple[dict[str, Partition], list[Covered]]:
    """One partition per selected parameter or per group of coupled slices, and the coverage of all parameters.

    ``skeleton`` allows parameters without values; ``inside`` leaves out what lies in none of these modules.

    With ``min_units`` above 1 small tensors may stay dense, so one that the structure does not fit stays dense too.

    Raises:
        StructureError: the structure fits no selected tensor, or does not fit one that it must.
    """
    whole = getattr(structure, "fit_model", None)  # coupled structures look at the model, not at one tensor
    if whole is not None:
        found: tuple[dict[str, Partition], list[Covered]] = whole(model, where)
        return found
    targets, skipped = find_targets(model, where, skeleton=skeleton)
    parts: dict[str, Partition] = {}
    for target in targets:
        if inside and not target.name.startswith(tuple(f"{name}." for name in inside)):
            skipped[target.name] = "outside the blocks"
            continue
        try:
            fitted = structure.fit(target)
        except StructureError as problem:
            if where.min_units == 1:
                raise
            fitted = f"the structure does not fit ({problem})"
        if isinstance(fitted, str):
            skipped[target.name] = fitted
        elif fitted.n_units < where.min_units:
            skipped[target.name] = f"{fitted.n_units} units, fewer than min_units={where.min_units}"
        else:
            parts[target.name] = fitted
    if not parts:
        reasons = "; ".join(sorted(set(skipped.values())))
        raise StructureError(f"{structure} fits none of the {len(targets)} selected tensors ({reasons})")
    coverage = [
        Covered(name, tuple(p.shape), p.numel(), parts[name].n_units if name in parts else 0, skipped.get(name, ""))
        for name, p in model.named_parameters()
    ]
    return parts, coverage
