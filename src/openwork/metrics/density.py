"""The one function that counts densities, always with three denominators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from openwork.core.targets import prunable_numel
from openwork.errors import VerificationFailed


@dataclass(frozen=True)
class Densities:
    """Kept entries over three denominators: the targeted tensors, all prunable weights, all parameters.

    ``targeted`` is kept / targeted; ``prunable`` and ``total`` count everything outside the targets as kept.
    Tied parameters count once.
    """

    kept: int
    targeted_numel: int
    prunable_numel: int
    total_numel: int

    @property
    def targeted(self) -> float:
        return self.kept / self.targeted_numel

    @property
    def prunable(self) -> float:
        return 1 - (self.targeted_numel - self.kept) / self.prunable_numel

    @property
    def total(self) -> float:
        return 1 - (self.targeted_numel - self.kept) / self.total_numel

    def to_dict(self) -> dict[str, Any]:
        return {"targeted": self.targeted, "prunable": self.prunable, "total": self.total, **asdict(self)}


def densities(model: nn.Module, masks: Mapping[str, Tensor], written: bool = True) -> Densities:
    """Count from the masks; with ``written``, check that the model really holds zeros wherever a mask says so.

    Raises:
        VerificationFailed: a pruned entry is not zero in the model.
    """
    params = dict(model.named_parameters())
    for name, mask in masks.items():
        if written and bool((params[name].detach()[~mask] != 0).any()):
            alive = int((params[name].detach()[~mask] != 0).sum())
            raise VerificationFailed(f"{name}: {alive} entries that the mask prunes are not zero in the model")
    targeted = sum(m.numel() for m in masks.values())
    return Densities(
        kept=sum(int(m.sum()) for m in masks.values()),
        targeted_numel=targeted,
        prunable_numel=max(targeted, prunable_numel(model)),
        total_numel=sum(p.numel() for p in params.values()),
    )
