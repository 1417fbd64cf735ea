"""Regions of units whose members lie in pieces on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed


@dataclass
class Traffic:
    """What was sent: ``bytes`` of this rank's contributions, ``calls`` collective operations."""

    bytes: int = 0
    calls: int = 0


@dataclass(frozen=True)
class Across:
    """A region whose units lie in pieces on the ranks of ``group``: this rank holds ``first`` and those behind it.

    A piece may be empty. ``total`` counts the units of all ranks.
    """

    group: Any
    first: int
    total: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def add(self, numbers: Sequence[int]) -> list[int]:
        """Every number summed over the ranks; the same on all of them."""
        found = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        self.traffic.bytes += found.numel() * found.element_size()
        self.traffic.calls += 1
        distributed.all_reduce(found, group=self.group)
        return [int(n) for n in found.tolist()]

    def largest(self, number: float) -> float:
        """The largest of the numbers of all ranks; the same on all of them."""
        found = torch.tensor([number], dtype=torch.float64, device=self.device)
        self.traffic.bytes += found.element_size()
        self.traffic.calls += 1
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.group)
        return float(found)
