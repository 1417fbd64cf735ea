"""SequentialAttention++: a softmax over the blocks of a layer scales every block (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from openwork.core.partition import Partition
from openwork.core.protocols import Gate
from openwork.errors import RecipeError


class AttentionGate(Gate):
    """``w * expand(A) * expand(mask)`` with ``A = T softmax(L)``, ``T`` the number of blocks, so that mean(A) = 1.

    ``L`` starts at zero, so the start equals the dense network. The softmax runs over *all* blocks in every phase and
    in float32 whatever the weight's dtype. Clipping keeps ``A`` in ``[density, 1 / density]``, with the density of its
    own layer: ``1 / density`` is what every survivor has when the attention is equal on them.
    """

    learns: ClassVar[str] = "attention logits"
    mask: Tensor

    def __init__(self, part: Partition, member: str, density: float, clip: bool):
        super().__init__()
        self.part, self.member = part, member
        self.bounds = (density, 1.0 / density) if clip else None
        self.logits = nn.Parameter(torch.zeros(part.n_units, dtype=torch.float32))
        self.register_buffer("mask", torch.ones(part.n_units, dtype=torch.bool), persistent=False)

    def attention(self) -> Tensor:
        """``[n_units]`` float32, clipped."""
        # T softmax(L) as e / mean(e): at equal logits T * (1 / T) may round, and the start would not be dense
        e = torch.exp(self.logits.float() - self.logits.detach().float().max())
        a = e / e.mean()
        return a.clamp(*self.bounds) if self.bounds else a

    def set_units(self, units: Tensor) -> None:
        self.mask.copy_(units)  # in place: a compiled step keeps reading the same tensor

    def learned(self) -> Tensor:
        """The logits order blocks exactly as the attention does, without the ties that clipping makes."""
        return self.logits.detach().clone()

    def forward(self, weight: Tensor) -> Tensor:
        gates = (self.attention() * self.mask).to(weight.dtype)
        return weight * self.part.spread(gates)[self.member]


@dataclass(frozen=True)
class SoftmaxAttention:
    """One logit per unit, trained with the weights; ``clip`` bounds the attention to ``[density, 1 / density]``.

    The density is the share that the layer itself keeps in the end, also where layers keep unequal shares.
    ``learning_rate`` scales the learning rate of the logits relative to the weights of their layer. ``decay=False``
    takes the logits out of the weight decay, which the paper finds to help. ``on_reactivate="zero"`` lets blocks that
    come back start from zero weights and not from those they left with; ``reset_logits`` makes the attention equal
    again at the start of every dense phase.
    """

    own_share: ClassVar[bool] = True
    clip: bool = True
    learning_rate: float = 1.0
    decay: bool = True
    on_reactivate: Literal["keep", "zero"] = "keep"
    reset_logits: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise RecipeError(f"SoftmaxAttention: learning_rate must be positive, got {self.learning_rate}")
        if self.on_reactivate not in ("keep", "zero"):
            raise RecipeError(f"SoftmaxAttention: on_reactivate must be 'keep' or 'zero', got {self.on_reactivate!r}")

    @property
    def group(self) -> dict[str, float]:
        """Options of the optimiser group of the logits."""
        return {} if self.decay else {"weight_decay": 0.0}

    def gate(self, part: Partition, density: float) -> Gate:
        return AttentionGate(part, part.members[0], density, self.clip)

    def at_update(
        self,
        gates: Mapping[str, Sequence[Any]],
        weights: Mapping[str, Tensor],
        revived: Mapping[str, Tensor],
        phase: str,
    ) -> None:
        """Blocks that come back, and the start of a dense phase."""
        for name, views in gates.items():
            if self.reset_logits and phase == "dense":
                views[0].logits.zero_()
            if self.on_reactivate == "zero" and bool(revived[name].any()):
                for view in views:
                    weights[view.member].masked_fill_(view.part.spread(revived[name])[view.member], 0.0)
