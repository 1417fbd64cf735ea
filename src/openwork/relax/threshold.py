"""STR: a soft threshold per layer, learned with the weights (Kusupati et al., ICML 2020)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from openwork.core.partition import Partition
from openwork.core.protocols import Gate
from openwork.core.select import count_kept
from openwork.errors import DensityMissed, RecipeError
from openwork.schedules import Cubic


class ThresholdGate(Gate):
    """``S(W, s) = sign(W) relu(|W| - f(s))`` with one ``s`` per tensor, times the mask; ``f`` is sigmoid or exp."""

    reparametrises: ClassVar[bool] = True
    mask: Tensor

    def __init__(self, part: Partition, member: str, density: float, initial: float, function: str):
        super().__init__()
        self.part, self.member, self.density, self.function = part, member, density, function
        self.s = nn.Parameter(torch.full((), initial, dtype=torch.float32))
        self.register_buffer("mask", torch.ones(()), persistent=False)

    def threshold(self) -> Tensor:
        """``f(s)``, float32 scalar."""
        return torch.sigmoid(self.s) if self.function == "sigmoid" else torch.exp(self.s)

    def raise_to(self, threshold: float) -> None:
        """Set ``s`` so that ``f(s)`` is this threshold."""
        value = torch.tensor(threshold, dtype=torch.float64).clamp(
            1e-30, 1 - 1e-9 if self.function == "sigmoid" else None
        )
        self.s.copy_((torch.logit(value) if self.function == "sigmoid" else value.log()).float())

    def set_units(self, units: Tensor) -> None:
        self.mask = self.part.spread(units.to(self.mask.device))[self.member]

    def invert(self, weight: Tensor) -> Tensor:
        return weight + torch.sign(weight) * self.threshold().to(weight.dtype)

    def bare(self, raw: Tensor) -> Tensor:
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))  # in bfloat16 the threshold would round
        return (torch.sign(wide) * torch.relu(wide.abs() - self.threshold())).to(raw.dtype)

    def forward(self, raw: Tensor) -> Tensor:
        return self.bare(raw) * self.mask


@dataclass(frozen=True)
class SoftThreshold:
    """Learned thresholds. ``control`` says what steers the density.

    ``"budget"``: every ``every`` steps all thresholds are multiplied by the one factor at which the share of a cubic
    curve (from 1 to the density between ``begin`` and ``end``) is alive; how the layers divide it is learned.
    ``"decay"``: only gradient and weight decay ``decay`` on ``s`` move the thresholds, as in the paper, which has no
    exact target.
    """

    begin: int = 0
    end: int = 1000
    every: int = 10
    initial: float = -8.0
    control: Literal["budget", "decay"] = "budget"
    decay: float | None = None
    function: Literal["sigmoid", "exp"] = "sigmoid"

    def __post_init__(self) -> None:
        if self.control not in ("budget", "decay"):
            raise RecipeError(f"SoftThreshold: control must be 'budget' or 'decay', got {self.control!r}")
        if self.function not in ("sigmoid", "exp"):
            raise RecipeError(f"SoftThreshold: function must be 'sigmoid' or 'exp', got {self.function!r}")
        if self.decay is not None and self.decay < 0:
            raise RecipeError(f"SoftThreshold: decay must not be negative, got {self.decay}")
        Cubic(0.5, self.begin, self.end, self.every)

    @property
    def group(self) -> dict[str, Any]:
        """Thresholds are optimised without decay unless decay is what steers them."""
        if self.control == "budget":
            return {"weight_decay": 0.0}
        return {} if self.decay is None else {"weight_decay": self.decay}

    def gate(self, part: Partition, density: float) -> Gate:
        return ThresholdGate(part, part.members[0], density, self.initial, self.function)

    def at_step(self, gates: Mapping[str, Any], weights: Mapping[str, Tensor], optimizer: Any, step: int) -> None:
        """Budget control: multiply every threshold by the factor at which the scheduled count is alive.

        Decay: say at the end when no threshold has removed anything.

        Raises:
            DensityMissed: decay has left less than a thousandth of a tensor.
        """
        if self.control == "decay" and step == self.end:
            _refuse_emptied(gates, weights, step)
            if not any(bool(((w != 0) & (w.abs() <= gates[n].threshold())).any()) for n, w in weights.items()):
                low = min(float(g.s) for g in gates.values())
                warnings.warn(
                    f"SoftThreshold: no threshold has risen above a weight in {step} steps (lowest s {low:g}), so the "
                    "mask is that of plain magnitude; start higher (initial) or raise the decay",
                    stacklevel=2,
                )
            return
        if self.control == "decay" or not self.begin < step <= self.end or (step % self.every and step != self.end):
            return
        density = next(iter(gates.values())).density
        share = Cubic(density, self.begin, self.end).share((step - self.begin) / (self.end - self.begin))
        total = sum(w.numel() for w in weights.values())
        keep = count_kept(share, total)
        relative = torch.cat([(weights[n].float().abs() / g.threshold()).flatten() for n, g in gates.items()])
        if keep == total:
            return
        # a little below the first entry to go, so that rounding never takes one too many
        factor = float(relative.kthvalue(total - keep).values) * (1 - 1e-5)
        if abs(factor - 1) < 1e-4 and int((relative > 1).sum()) >= keep:
            return  # met already, for instance when a run is loaded at this step
        for gate in gates.values():
            gate.raise_to(float(gate.threshold()) * factor)


def _refuse_emptied(gates: Mapping[str, Any], weights: Mapping[str, Tensor], step: int) -> None:
    for name, weight in weights.items():
        threshold = float(gates[name].threshold())
        alive = int((weight.abs() > threshold).sum())
        if alive < 0.001 * weight.numel():
            raise DensityMissed(
                f"{name}: {alive} of {weight.numel():,} weights are above its threshold of {threshold:.3g} after {step}"
                " steps, less than a thousandth; lower the decay or start from a lower threshold (initial)"
            )
