"""Model + structure + selection -> partitions, with a row of coverage for every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from openwork.core.across import Traffic
from openwork.core.partition import Partition
from openwork.core.protocols import Structure
from openwork.core.shards import is_sharded, mesh_of, total_of
from openwork.core.targets import Select, find_targets
from openwork.errors import StructureError
from openwork.structure.pieces import piece_of


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

    Of a sharded parameter (``DTensor``) a partition is the piece that this rank holds.

    With ``min_units`` above 1 small tensors may stay dense, so one that the structure does not fit stays dense too.

    Raises:
        StructureError: the structure fits no selected tensor, or does not fit one that it must.
    """
    whole = getattr(structure, "fit_model", None)  # coupled structures look at the model, not at one tensor
    sharded = {n: p for n, p in model.named_parameters() if is_sharded(p)}
    if whole is not None and sharded:
        raise StructureError(
            f"{structure} couples slices of several tensors and needs them whole, but {next(iter(sharded))} is sharded "
            "over the ranks; prune and compact before fully_shard"
        )
    if whole is not None:
        found: tuple[dict[str, Partition], list[Covered]] = whole(model, where)
        return found
    targets, skipped = find_targets(model, where, skeleton=skeleton)
    parts: dict[str, Partition] = {}
    traffic = Traffic()
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
            param = sharded.get(target.name)
            parts[target.name] = fitted if param is None else piece_of(param, fitted, structure, traffic)
    _refuse_mixed(parts, sharded)
    if not parts:
        reasons = "; ".join(sorted(set(skipped.values())))
        raise StructureError(f"{structure} fits none of the {len(targets)} selected tensors ({reasons})")
    coverage = [
        Covered(name, tuple(p.shape), p.numel(), total_of(parts[name]) if name in parts else 0, skipped.get(name, ""))
        for name, p in model.named_parameters()
    ]
    return parts, coverage


def _refuse_mixed(parts: Mapping[str, Partition], sharded: Mapping[str, Any]) -> None:
    """Counts are summed over one group of ranks, so all targets must lie on the same one."""
    if not any(name in sharded for name in parts):
        return
    whole = [name for name in parts if name not in sharded]
    if whole:
        raise StructureError(
            f"{whole[0]}: is whole on every rank while other targets are sharded; call fully_shard on the root module "
            f"too, or leave it out with Select(exclude=({whole[0]!r},))"
        )
    first = next(iter(parts))
    for name in parts:
        if mesh_of(sharded[name]) != mesh_of(sharded[first]):
            raise StructureError(
                f"{name}: lies on another device mesh than {first}; prune each with a recipe of its own, "
                "Select(include=...)"
            )
