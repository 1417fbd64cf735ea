"""Groups of coordinates: a checked partition of ``0 .. n-1``, given as labels or as lists of indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from openwork.errors import StructureError


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of ``n`` coordinates into ``len(indices)`` groups.

    ``indices`` holds one int64 tensor a group, in rising order; ``labels`` is int64 ``(n,)``, the group of every
    coordinate. Made by `as_groups`, which does the checking.
    """

    indices: tuple[Tensor, ...]
    labels: Tensor

    @property
    def n(self) -> int:
        return int(self.labels.numel())

    def __len__(self) -> int:
        return len(self.indices)

    def norms(self, values: Tensor) -> Tensor:
        """Euclidean norm of every group, ``(n,)`` or ``(n, m)`` float64 to ``(t,)`` float64."""
        squares = values.square().reshape(self.n, -1).sum(1)
        return torch.zeros(len(self), dtype=squares.dtype).index_add_(0, self.labels, squares).sqrt_()

    def spread(self, per_group: Tensor) -> Tensor:
        """One value a group to one value a coordinate, ``(t,)`` to ``(n,)``."""
        return per_group[self.labels]

    def cover(self, chosen: Sequence[int]) -> Tensor:
        """Bool ``(n,)``: the coordinates of the chosen groups."""
        on = torch.zeros(len(self), dtype=torch.bool)
        on[list(chosen)] = True
        return self.spread(on)


GroupsLike: TypeAlias = Union[Groups, Tensor, "np.ndarray", Sequence[int], Sequence[Sequence[int]]]


def as_groups(groups: GroupsLike, n: int) -> Groups:
    """A partition from labels ``(n,)`` with values ``0 .. t-1``, or from a list of index arrays.

    Raises:
        StructureError: a label or an index is NaN or no integer, the length is wrong, an index is out of range or in
            two groups, a coordinate is in no group, or a group is empty.

    Examples:
        >>> [i.tolist() for i in as_groups([0, 1, 0], 3).indices]
        [[0, 2], [1]]
        >>> as_groups([[2], [0, 1]], 3).labels.tolist()
        [1, 1, 0]
    """
    if isinstance(groups, Groups):
        if groups.n != n:
            raise StructureError(f"groups: must split {n} coordinates, got a partition of {groups.n}; make it again")
        return groups
    if isinstance(groups, Tensor | np.ndarray) or all(np.ndim(g) == 0 for g in groups):
        labels = _integers(groups, "labels")
        if labels.shape != (n,):
            raise StructureError(
                f"groups: labels must have one entry for each of {n} coordinates, got shape {tuple(labels.shape)}"
            )
        if labels.numel() and int(labels.min()) < 0:
            raise StructureError(f"groups: labels must not be negative, got {int(labels.min())}; number them from 0")
        count = int(labels.max()) + 1 if labels.numel() else 0
        sizes = torch.bincount(labels, minlength=count)
        if bool((sizes == 0).any()):
            empty = int((sizes == 0).nonzero()[0])
            raise StructureError(f"groups: every label of 0 .. {count - 1} must occur, group {empty} is empty")
        return _of_labels(labels, count)
    parts = [_integers(g, f"group {i}").reshape(-1) for i, g in enumerate(groups)]
    labels = torch.full((n,), -1, dtype=torch.int64)
    for i, part in enumerate(parts):
        if not part.numel():
            raise StructureError(f"groups: a group must have a member, group {i} has none; leave it out")
        if int(part.min()) < 0 or int(part.max()) >= n:
            raise StructureError(f"groups: indices must be in 0 .. {n - 1}, group {i} holds {part.tolist()}")
        taken = labels[part] >= 0
        if bool(taken.any()) or part.unique().numel() < part.numel():
            raise StructureError(f"groups: must not overlap, group {i} repeats an index that is already in a group")
        labels[part] = i
    if bool((labels < 0).any()):
        raise StructureError(
            f"groups: must cover every coordinate, {int((labels < 0).nonzero()[0])} is in none; add a group for it"
        )
    return _of_labels(labels, len(parts))


def _integers(values: object, what: str) -> Tensor:
    """Int64; whole numbers stored as floats are taken, NaN and fractions are not."""
    found = torch.as_tensor(np.asarray(values))
    if found.dtype == torch.bool or found.is_complex():
        raise StructureError(f"groups: {what} must be integers, got {found.dtype}; pass numbers from 0")
    if found.is_floating_point() and not bool(found.isfinite().all() and (found == found.round()).all()):
        raise StructureError(f"groups: {what} must be whole numbers without NaN, got {found.tolist()}")
    return found.to(torch.int64)


def _of_labels(labels: Tensor, count: int) -> Groups:
    members = labels.argsort(stable=True).split(torch.bincount(labels, minlength=count).tolist())
    return Groups(tuple(members), labels.clone())
