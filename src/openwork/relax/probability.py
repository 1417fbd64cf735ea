"""ProbMask: a keep-probability per unit under one budget, sampled by a relaxed Bernoulli (Zhou et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from openwork.core.partition import Partition
from openwork.core.protocols import Gate
from openwork.errors import DivergedError, RecipeError

EDGE = 1e-6
"""Probabilities enter the sampler at least this far from 0 and 1, where the logit is infinite."""
STEEPEST = 3.0
"""The norm that the gradient of all probabilities is clipped to: near 0 and 1 that of the logit has no bound."""


def project_budget(values: Tensor, budget: float) -> Tensor:
    """The point of ``{0 <= s <= 1, sum s <= budget}`` nearest to ``values`` (1-D), in float64.

    ``clip(s - v, 0, 1)`` with ``v >= 0`` from bisection; a point inside comes back clipped only, so that projecting
    twice is projecting once.

    Raises:
        DivergedError: values that are not finite.
    """
    s = values.double()
    if not bool(torch.isfinite(s).all()):
        raise DivergedError("keep-probabilities became NaN or infinite; lower their learning rate")
    inside = s.clamp(0, 1)
    if float(inside.sum()) <= budget * (1 + 1e-6):  # what float32 storage of a projected point may add
        return inside
    low, high = 0.0, float(s.max())
    for _ in range(60):
        middle = (low + high) / 2
        if float((s - middle).clamp(0, 1).sum()) > budget:
            low = middle
        else:
            high = middle
    return (s - high).clamp(0, 1)


class ProbabilityGate(Gate):
    """``w * m`` with ``m = sigmoid((logit s + g1 - g0) / tau)`` while training, ``m = s`` in eval mode.

    Once a mask is set, it replaces the samples.
    """

    learns: ClassVar[str] = "keep-probabilities"
    mask: Tensor
    tau: Tensor

    def __init__(self, part: Partition, member: str, density: float):
        super().__init__()
        self.part, self.member, self.density = part, member, density
        self.s = nn.Parameter(torch.ones(part.n_units, dtype=torch.float32))
        self.register_buffer("tau", torch.ones(()), persistent=False)
        self.register_buffer("mask", torch.ones(()), persistent=False)
        self.fixed = False

    def sample(self) -> Tensor:
        """A relaxed draw ``[n_units]``, differentiable in ``s``.

        At 0 and 1 with the slope at the edge: a clamp without one would hold a probability there for good.
        """
        s = self.s + (self.s.clamp(EDGE, 1 - EDGE) - self.s).detach()
        u = torch.rand(2, *s.shape, device=s.device).clamp_min(1e-20)
        noise = -torch.log(torch.log(u[0]) / torch.log(u[1]))
        return torch.sigmoid((torch.logit(s) + noise) / self.tau)

    def set_units(self, units: Tensor) -> None:
        self.fixed = not bool(units.all())
        self.mask = self.part.spread(units.to(self.mask.device))[self.member]

    def learned(self) -> Tensor:
        return self.s.detach().clone()

    def forward(self, weight: Tensor) -> Tensor:
        if self.fixed:
            return weight * self.mask
        units = self.sample() if self.training else self.s
        return weight * self.part.spread(units.to(weight.dtype))[self.member]


@dataclass(frozen=True)
class Probabilities:
    """Keep-probabilities, all 1 at the start, under one global budget that falls on a cubic curve.

    The budget is 1 before ``begin`` and the density after ``end`` (shares of ``steps``); the temperature falls as
    ``1 / tau = 1 / (0.97 (1 - t) + 0.03)``. Adam with a cosine learning rate moves the probabilities, an exact
    projection brings them back under the budget. The norm of their gradient is clipped to 3 before every step of
    Adam (the paper clips that of weights and probabilities together).

    ``samples`` is how many forward passes, each with its own draw, a training loop averages the loss of.
    """

    steps: int = 1000
    begin: float = 0.16
    end: float = 0.60
    learning_rate_of_s: float = 6e-3
    final_temperature: float = 0.03
    samples: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.begin < self.end <= 1:
            raise RecipeError(
                f"Probabilities: needs steps >= 1 and 0 <= begin < end <= 1, got {self.steps}, {self.begin} and "
                f"{self.end}"
            )
        if not self.learning_rate_of_s > 0 or not 0 < self.final_temperature <= 1:
            raise RecipeError(
                "Probabilities: learning_rate_of_s must be positive and final_temperature in (0, 1], got "
                f"{self.learning_rate_of_s} and {self.final_temperature}"
            )
        if self.samples < 1:
            raise RecipeError(f"Probabilities: samples must be at least 1, got {self.samples}; the paper draws 2")

    def gate(self, part: Partition, density: float) -> Gate:
        return ProbabilityGate(part, part.members[0], density)

    def optimizer(self, params: Sequence[nn.Parameter]) -> Optimizer:
        adam = Adam(params, lr=self.learning_rate_of_s)

        def clip(*_: object) -> None:
            clip_grad_norm_(params, STEEPEST)

        adam.register_step_pre_hook(clip)
        return adam

    def budget(self, progress: float, density: float) -> float:
        """The share of units that the probabilities may sum to."""
        if progress <= self.begin:
            return 1.0
        left = max(0.0, 1 - (progress - self.begin) / (self.end - self.begin))
        return density + (1 - density) * left**3

    def at_step(self, gates: Mapping[str, Any], weights: Mapping[str, Tensor], optimizer: Any, step: int) -> None:
        """Learning rate, temperature and projection of one step."""
        progress = min(1.0, step / self.steps)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate_of_s * 0.5 * (1 + math.cos(math.pi * progress))
        low = self.final_temperature
        for gate in gates.values():
            gate.tau.fill_((1 - low) * (1 - progress) + low)
        if all(gate.fixed for gate in gates.values()):
            return
        density = next(iter(gates.values())).density
        probabilities = torch.cat([g.s.detach() for g in gates.values()])
        projected = project_budget(probabilities, self.budget(progress, density) * probabilities.numel())
        for gate, new in zip(gates.values(), projected.split([g.s.numel() for g in gates.values()]), strict=True):
            gate.s.copy_(new)
