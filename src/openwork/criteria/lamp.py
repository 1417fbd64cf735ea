"""Layer-adaptive magnitudes: scores that can be compared between layers (Lee et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.criteria.weights import NOTHING, Magnitude


@dataclass(frozen=True)
class Lamp:
    """``|w_u|^2`` over the sum of ``|w_v|^2`` of all units of the tensor that are no smaller, float64 in [0, 1].

    The largest unit of every tensor scores 1, so that one ranking over the model (``Global``) empties no layer. Of
    equal units the later one is taken as smaller. Zeros score 0.
    """

    norm: Literal["l1", "l2"] = "l2"

    @property
    def needs(self) -> frozenset[Stat]:
        return NOTHING

    def __call__(self, part: Partition, now: Now) -> Tensor:
        square = Magnitude(self.norm)(part, now).double().square()
        order = torch.argsort(square, descending=True, stable=True)
        ranked = square[order]
        scores = torch.zeros_like(square)
        scores[order] = ranked / ranked.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
        return scores
