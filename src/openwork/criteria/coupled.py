"""Criteria of structural pruning: scales of norms, distances to the geometric median, the diagonal of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.criteria.grouped import Sides, slices_of
from openwork.errors import StructureError
from openwork.stats import FisherDiagonal


@dataclass(frozen=True)
class NormScale:
    """``|gamma|`` of the norms that scale a unit, their mean where there are several (network slimming).

    Of a block it is the mean over all scales inside.

    The scales are the tensors of one dimension whose name ends in ``weight``.

    Raises:
        StructureError: when asked, a group with a unit that no norm scales.
    """

    whole: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset()

    def __call__(self, part: Partition, now: Now) -> Tensor:
        pieces = [p for p in slices_of(part, "made") if _is_scale(p.members[0], now)]
        if not pieces:
            raise StructureError(
                f"{part.members[0]}: no norm scales these units, so their scales cannot rank them; leave the group out "
                "with Select(exclude=...) or take another criterion"
            )
        sums = torch.stack([p.pool({m: now.weights[m].abs() for m in p.members}) for p in pieces])
        entries = torch.stack([p.cost for p in pieces]).to(sums)
        norms = (entries > 0).sum(0)
        if not bool(norms.all()):
            raise StructureError(
                f"{part.members[0]}: {int((norms == 0).sum())} of {part.n_units} units have no norm that scales them, "
                "so scales cannot rank the group; leave it out with Select(exclude=...) or take another criterion"
            )
        return (sums / entries.clamp(min=1)).sum(0) / norms


def _is_scale(name: str, now: Now) -> bool:
    return now.weights[name].ndim == 1 and name.endswith("weight")


@dataclass(frozen=True)
class GeometricMedian:
    """``sum_j ||w_i - w_j||`` over the units of a group, summed over its slices (FPGM).

    A unit near the geometric median of its group is what the others can replace best, so it goes first. Slices of one
    dimension (norms, biases) do not count, nor do slices that hold one unit alone (blocks).
    """

    whole: ClassVar[bool] = True
    sides: Sides = "made"

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset()

    def __call__(self, part: Partition, now: Now) -> Tensor:
        total: Tensor | None = None
        for piece in slices_of(part, self.sides):
            for rows in _rows(piece, now):
                distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
                total = distances if total is None else total + distances
        if total is None:
            raise StructureError(
                f"{part.members[0]}: the geometric median needs weights of two dimensions or more that hold several "
                "units; this group has none. Take another criterion"
            )
        return total


def _rows(piece: Partition, now: Now) -> list[Tensor]:
    """One row per unit, the entries of a unit side by side (their mean where units have unequal numbers of them)."""
    sites = getattr(piece, "sites", None)
    if sites is None:
        raise StructureError(
            f"{piece.members[0]}: the geometric median compares coupled units; prune with ow.channels(example=x)"
        )
    weight = now.weights[sites[0].tensor].double()
    if weight.ndim < 2:
        return []
    labels = sites[0].labels.to(weight.device)
    flat = weight.movedim(sites[0].dim, 0).flatten(1)[labels >= 0]
    owners = labels[labels >= 0]
    counts = torch.bincount(owners, minlength=piece.n_units)
    if int((counts > 0).sum()) < 2:
        return []
    if bool((counts == counts[0]).all()):
        return [flat[torch.argsort(owners, stable=True)].reshape(piece.n_units, -1)]
    means = torch.zeros(piece.n_units, flat.shape[1], dtype=flat.dtype, device=flat.device).index_add(0, owners, flat)
    return [means / counts.clamp(min=1)[:, None]]


@dataclass(frozen=True)
class GroupHessian:
    """``sum over the unit of w^2 E[g^2] / 2``: the loss to second order, with the diagonal Fisher as Hessian.

    ``g`` are gradients of single samples at the weights alive now.
    """

    fisher: FisherDiagonal = field(default_factory=FisherDiagonal)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.fisher})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        squares = now.at_masks(self.fisher)
        return part.pool({m: now.weights[m].square() * squares[m] / 2 for m in part.members})
