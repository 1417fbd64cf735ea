"""Cropping a fresh network: random units stay, and weights get the scale of their new number of inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from openwork.allocation.crop import PreCrop
from openwork.core.masks import masks_of
from openwork.core.now import Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.protocols import Allocation, Rule
from openwork.core.select import keep_top
from openwork.core.stat import Stat
from openwork.criteria import Random


@dataclass(frozen=True)
class Crop(Rule):
    """The allocation says how many units stay, chance says which: for networks that have learned nothing yet.

    ``rescale`` multiplies the weights that read coupled units by ``sqrt(inputs before / inputs after)``. A random part
    of a network drawn by fan-in is then one drawn by fan-in itself.
    """

    allocation: Allocation = field(default_factory=PreCrop)
    rescale: bool = True

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return getattr(self.allocation, "needs", frozenset())

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        scores = {n: Random()(p, now) for n, p in now.parts.items()}
        counts = self.allocation(now, scores, phase.share)
        units = {n: keep_top(scores[n], counts[n], now.parts[n].scope()) for n in scores}
        edits: dict[str, Tensor] = {}
        if self.rescale:
            reading: dict[str, Partition] = {n: p.side(True) for n, p in now.parts.items() if hasattr(p, "side")}
            for name, mask in masks_of(reading, {n: units[n] for n in reading}).items():
                kept = float(mask.double().mean())
                edits[name] = now.weights[name] * kept**-0.5
        return Update(units, edits, state)
