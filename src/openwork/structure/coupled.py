"""Units that lie in several tensors: a channel with its filter, its norm and everything that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from openwork.core.partition import Pool
from openwork.errors import StructureError
from openwork.graph.groups import Site


@dataclass(frozen=True)
class Coupled:
    """A partition over slices of several tensors. ``shapes`` are those of the member tensors.

    All slices of a unit are masked: where a unit is read, so that it leaves the function whatever stands before, and
    where it is made, so that what is zero is what compaction removes. ``gated`` are the tensors that read it; soft
    gates stand there only, so that a unit is scaled once.

    ``multiple`` and ``at_least`` bound the number of units that allocations keep. An entry that belongs to two units
    of the partition (a tensor with the same axis twice) counts for both and is kept when both are.
    """

    name: str
    n_units: int
    sites: tuple[Site, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    kind: str = "channels"
    over: str = ""
    multiple: int = 1
    at_least: int = 1

    quota = None

    @cached_property
    def members(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.tensor for s in self.sites))

    @cached_property
    def gated(self) -> tuple[str, ...]:
        """The tensors that read the units; all members when none does."""
        return self.reading.members

    @cached_property
    def reading(self) -> Coupled:
        """The units as soft masks see them: where they are read, so that a unit is scaled once and can come back.

        A mask on both sides would multiply twice, and at zero neither side would feel a gradient. Units that nobody
        reads are seen everywhere.
        """
        return self.side(True) if any(s.consumes for s in self.sites) else self

    def only(self, members: Iterable[str]) -> Coupled:
        """The same units, seen in some of the tensors."""
        wanted = set(members)
        return replace(self, sites=tuple(s for s in self.sites if s.tensor in wanted))

    def side(self, consumes: bool) -> Coupled:
        """The same units, only where they are read (True) or only where they are made (False)."""
        return replace(self, sites=tuple(s for s in self.sites if s.consumes == consumes))

    @cached_property
    def _shape(self) -> dict[str, tuple[int, ...]]:
        return dict(self.shapes)

    @cached_property
    def cost(self) -> Tensor:
        """``[n_units]`` int64, entries behind each unit."""
        total = torch.zeros(self.n_units, dtype=torch.int64)
        for site in self.sites:
            shape = self._shape[site.tensor]
            rest = 1
            for d, n in enumerate(shape):
                rest *= n if d != site.dim else 1
            owned = site.labels[site.labels >= 0]
            total += torch.bincount(owned, minlength=self.n_units) * rest
        return total

    def told(self, alive: Tensor) -> dict[str, Any]:
        """A plain row for reports: ``at`` holds tensor, dimension, and whether the units are read there."""
        row = {"name": self.name, "kind": self.kind, "units": self.n_units, "kept": int(alive.sum())}
        return row | {"at": [[s.tensor, s.dim, s.consumes] for s in self.sites]}

    def scope(self) -> None:
        return None

    def pool(self, values: Mapping[str, Tensor], how: Pool = "sum") -> Tensor:
        total: Tensor | None = None
        for site in self.sites:
            here = self._reduced(site, values[site.tensor], how)
            total = here if total is None else torch.maximum(total, here) if how == "max" else total + here
        if total is None:
            raise StructureError(f"{self.name}: no tensor of the group was asked for")
        if how == "norm":
            return total.sqrt()
        return total / self.cost.to(total) if how == "mean" else total

    def _reduced(self, site: Site, x: Tensor, how: Pool) -> Tensor:
        """One value per unit from one slice."""
        labels = site.labels.to(x.device)
        own = labels >= 0
        rest = [d for d in range(x.ndim) if d != site.dim]
        if how == "max":
            flat = x.amax(rest) if rest else x
            low = torch.full((self.n_units,), _lowest(x), dtype=x.dtype, device=x.device)
            return low.scatter_reduce(0, labels[own], flat[own], "amax")
        if how == "norm":
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            x = wide.square()
        x = x.long() if x.dtype == torch.bool else x
        flat = x.sum(rest) if rest else x
        return torch.zeros(self.n_units, dtype=flat.dtype, device=x.device).index_add(0, labels[own], flat[own])

    def spread(self, units: Tensor) -> dict[str, Tensor]:
        if units.numel() != self.n_units:
            raise StructureError(f"{self.name}: {self.n_units} units expected, got {units.numel()}")
        units = units.reshape(-1)
        spread: dict[str, Tensor] = {}
        for site in self.sites:
            shape = self._shape[site.tensor]
            labels = site.labels.to(units.device)
            line = units[labels.clamp(min=0)]
            line = torch.where(labels >= 0, line, torch.ones_like(line))
            wide = line.view([-1 if d == site.dim else 1 for d in range(len(shape))]).expand(shape)
            old = spread.get(site.tensor)
            spread[site.tensor] = wide if old is None else old & wide if units.dtype == torch.bool else old * wide
        return {name: value.contiguous() if value.dtype == torch.bool else value for name, value in spread.items()}


def _lowest(x: Tensor) -> float | int:
    return float("-inf") if x.is_floating_point() else int(torch.iinfo(x.dtype).min)
