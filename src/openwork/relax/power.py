"""Powerpropagation: weights as a power of what is trained, so that large ones learn faster (Schwarz et al., 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from openwork.core.partition import Partition
from openwork.core.protocols import Gate
from openwork.errors import RecipeError

TINY = 1e-12
"""Sizes below this count as it, so that no derivative is infinite or NaN at zero."""


class PowerGate(Gate):
    """``w = v |v|^(alpha - 1)`` with ``|v|`` the norm of the unit that an entry belongs to, times the mask.

    For single weights this is ``sign(v) |v|^alpha``; for groups ``|w_b| = |v_b|^alpha`` (alpha = 2: Lemma 2.3 of
    SequentialAttention++, l2 decay on ``v`` is group LASSO on ``w``). Ranking by ``|w|`` is ranking by ``|v|``.
    """

    reparametrises: ClassVar[bool] = True
    mask: Tensor

    def __init__(self, part: Partition, member: str, alpha: float):
        super().__init__()
        self.part, self.member, self.alpha = part, member, alpha
        self.register_buffer("mask", torch.ones(()), persistent=False)

    def set_units(self, units: Tensor) -> None:
        self.mask = self.part.spread(units.to(self.mask.device))[self.member]

    def bare(self, raw: Tensor) -> Tensor:
        return raw * self._size(raw).pow(self.alpha - 1)

    def invert(self, weight: Tensor) -> Tensor:
        return weight * self._size(weight).pow(1 / self.alpha - 1)

    def forward(self, raw: Tensor) -> Tensor:
        return self.bare(raw) * self.mask

    def _size(self, value: Tensor) -> Tensor:
        if self.part.n_units == value.numel():
            return value.abs().clamp_min(TINY)
        squares = self.part.pool({self.member: value.square()}, "sum")
        return self.part.spread(squares.clamp_min(TINY**2).sqrt())[self.member]


@dataclass(frozen=True)
class Power:
    """Train ``v`` with ``w = v |v|^(alpha - 1)`` per unit; the start is the ordinary network."""

    alpha: float = 2.0

    def __post_init__(self) -> None:
        if not self.alpha >= 1:
            raise RecipeError(
                f"Power: alpha must be at least 1, got {self.alpha}; below 1 small weights would learn without bound"
            )

    def gate(self, part: Partition, density: float) -> Gate:
        return PowerGate(part, part.members[0], self.alpha)

    def at_step(self, gates: Mapping[str, Any], weights: Mapping[str, Tensor], optimizer: Any, step: int) -> None:
        """Say at the start which tensors cannot learn; nothing changes."""
        still = [n for n in gates if not bool(weights[n].any())] if step == 0 and self.alpha > 1 else []
        if still:
            warnings.warn(
                f"Power: {', '.join(still)} starts at zero, where the derivative of a power is zero, and will stay "
                "near it; initialise it otherwise, or leave it out with Select(exclude=...)",
                stacklevel=2,
            )
