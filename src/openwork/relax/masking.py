"""Multiply by the mask in the forward pass and keep the pruned values underneath."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.core.partition import Partition
from openwork.core.protocols import Gate


class MaskGate(Gate):
    """``w * mask``; masked weights get no gradient and come back with their old value when they are revived."""

    mask: Tensor

    def __init__(self, part: Partition, member: str):
        super().__init__()
        self.part, self.member = part, member
        self.register_buffer("mask", torch.ones(()), persistent=False)
        self.set_units(torch.ones(part.n_units, dtype=torch.bool))

    def set_units(self, units: Tensor) -> None:
        self.mask = self.part.spread(units.to(self.mask.device))[self.member]

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


@dataclass(frozen=True)
class Masking:
    """Masks act in the forward pass only; nothing is zeroed until ``finish`` folds them in."""

    def gate(self, part: Partition, density: float) -> Gate:
        return MaskGate(part, part.members[0])
