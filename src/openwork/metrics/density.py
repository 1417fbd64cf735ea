"""The one function that counts densities, always with three denominators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.shards import counted, local
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
        return self.kept / self.targeted_numel if self.targeted_numel else 1.0

    @property
    def prunable(self) -> float:
        return 1 - (self.targeted_numel - self.kept) / self.prunable_numel if self.prunable_numel else 1.0

    @property
    def total(self) -> float:
        return 1 - (self.targeted_numel - self.kept) / self.total_numel

    def to_dict(self) -> dict[str, Any]:
        return {"targeted": self.targeted, "prunable": self.prunable, "total": self.total, **asdict(self)}


def densities(model: nn.Module, masks: Mapping[str, Tensor], written: bool = True) -> Densities:
    """Count from the masks; with ``written``, check that the model really holds zeros wherever a mask says so.

    Raises:
        VerificationFailed: a pruned entry is not zero in the model, or the masks are of another model or not bool.
    """
    params = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in params or params[name].shape != mask.shape:
            raise VerificationFailed(f"{name}: the model has no such parameter of shape {tuple(mask.shape)}")
        if mask.dtype != torch.bool:
            raise VerificationFailed(f"{name}: densities are counted from bool masks, got {mask.dtype}; take mask != 0")
        alive = counted(mask, local(params[name].detach())[~local(mask)] != 0) if written else 0
        if alive:
            raise VerificationFailed(f"{name}: {alive} entries that the mask prunes are not zero in the model")
    targeted = sum(m.numel() for m in masks.values())
    return Densities(
        kept=sum(counted(m, local(m)) for m in masks.values()),
        targeted_numel=targeted,
        prunable_numel=prunable_numel(model, masks),
        total_numel=sum(p.numel() for p in params.values()),
    )
