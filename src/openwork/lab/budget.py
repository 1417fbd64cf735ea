"""How long and how a job trains; sensible defaults per data set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

from openwork.errors import RecipeError, did_you_mean
from openwork.lab.precision import PRECISIONS

SCHEDULES = ("cosine", "exponential", "constant")
LATER = ("precision", "accumulate", "schedule", "final_lr", "round_epochs", "round_lr")
"""Fields that budgets of before did not have."""
MOST, LARGEST_BATCH = 10**6, 2**31 - 1
"""Bounds of what may be meant: epochs, and samples of a batch."""


@dataclass(frozen=True)
class Budget:
    """Training budget: ``epochs`` dense, then ``finetune_epochs`` after pruning; sparse training gets both in one.

    The learning rate warms up over ``warmup`` of the steps of a stage and falls to ``final_lr`` on a cosine or an
    exponential, or stays (``schedule``). ``rewind`` is the share of the dense training after which the rewind point of
    iterative methods lies. ``precision`` is that of training and evaluation; criteria score in float32. Each step adds
    up the gradients of ``accumulate`` micro-batches of ``batch_size / accumulate`` samples; batch norms see those.
    Methods that prune and fine-tune in rounds share ``finetune_epochs`` out evenly, or train ``round_epochs`` after all
    rounds but the last, which gets what is left; ``round_lr`` is the peak of those before the last, if not
    ``finetune_lr``.

    Raises:
        RecipeError: a number that is not finite or out of its range, an unknown optimizer, precision or schedule, a
            batch that cannot be cut into equal parts, a final learning rate that does not fit the schedule, rounds that
            take all the fine-tuning.
    """

    epochs: float = 10
    finetune_epochs: float = 5
    batch_size: int = 128
    lr: float = 0.05
    finetune_lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    warmup: float = 0.05
    rewind: float = 0.05
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    final_lr: float = 0.0
    round_epochs: float = 0.0
    round_lr: float = 0.0

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if not isinstance(f.default, str)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise RecipeError(f"Budget: {name} must be a finite number, got {value!r}")
        if not 0 < self.epochs <= MOST or not 0 <= self.finetune_epochs <= MOST:
            raise RecipeError(
                f"Budget: needs epochs > 0 and finetune_epochs >= 0, both at most {MOST}, got {self.epochs} and "
                f"{self.finetune_epochs}"
            )
        if self.batch_size < 1 or self.lr <= 0 or self.finetune_lr <= 0:
            raise RecipeError(
                f"Budget: batch_size, lr and finetune_lr must be positive, got {self.batch_size}, {self.lr}, "
                f"{self.finetune_lr}"
            )
        if not isinstance(self.batch_size, Integral) or self.batch_size > LARGEST_BATCH:
            raise RecipeError(f"Budget: batch_size must be a whole number up to {LARGEST_BATCH}, got {self.batch_size}")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise RecipeError(
                f"Budget: momentum must be in [0, 1) and weight_decay at least 0, got {self.momentum} and "
                f"{self.weight_decay}"
            )
        if self.optimizer not in ("sgd", "adamw"):
            raise RecipeError(f"Budget: optimizer must be 'sgd' or 'adamw', got {self.optimizer!r}")
        if self.precision not in PRECISIONS:
            raise RecipeError(
                f"Budget: unknown precision {self.precision!r}; {did_you_mean(str(self.precision), PRECISIONS)}"
            )
        if not isinstance(self.accumulate, Integral) or self.accumulate < 1 or self.batch_size % self.accumulate:
            raise RecipeError(
                f"Budget: accumulate must be a whole number from 1 on that divides batch_size {self.batch_size}, got "
                f"{self.accumulate}"
            )
        if self.round_epochs < 0 or self.round_lr < 0:
            raise RecipeError(
                f"Budget: round_epochs and round_lr must be at least 0, got {self.round_epochs} and {self.round_lr}"
            )
        self._check_schedule()
        if not 0 <= self.warmup < 1 or not 0 <= self.rewind < 1:
            raise RecipeError(
                f"Budget: warmup and rewind must be shares in [0, 1), got {self.warmup} and {self.rewind}"
            )

    def _check_schedule(self) -> None:
        if self.schedule not in SCHEDULES:
            raise RecipeError(
                f"Budget: unknown schedule {self.schedule!r}; {did_you_mean(str(self.schedule), SCHEDULES)}"
            )
        if self.schedule == "constant" and self.final_lr != 0:
            raise RecipeError(f"Budget: a constant schedule has no final_lr, got {self.final_lr}; leave it out")
        if self.schedule == "exponential" and self.final_lr == 0:
            raise RecipeError("Budget: an exponential never reaches 0; give final_lr, such as a hundredth of lr")
        peak = min(self.lr, self.finetune_lr, self.round_lr or self.lr) if self.finetune_epochs else self.lr
        if not 0 <= self.final_lr <= peak:
            raise RecipeError(
                f"Budget: final_lr must be at least 0 and at most the peak that it falls from, {peak}, got "
                f"{self.final_lr}"
            )

    def plain(self) -> dict[str, Any]:
        """Plain data for manifests; what came later only where it is not the default, so that stopped runs go on."""
        default = {f.name: f.default for f in fields(self) if f.name in LATER}
        return {k: v for k, v in asdict(self).items() if k not in LATER or v != default[k]}

    def rounds(self, steps: int, rounds: int) -> list[tuple[int, float]]:
        """Steps and peak learning rate of every round, of ``steps`` of fine-tuning in all.

        Examples:
            >>> Budget(finetune_epochs=12, round_epochs=3, round_lr=0.05, finetune_lr=0.01).rounds(120, 3)
            [(30, 0.05), (30, 0.05), (60, 0.01)]
        """
        each = steps // rounds
        if self.round_epochs and rounds > 1:
            each = round(steps * self.round_epochs / self.finetune_epochs) if self.finetune_epochs else 0
            if each * (rounds - 1) >= steps:
                raise RecipeError(
                    f"Budget: {rounds - 1} rounds of round_epochs {self.round_epochs:g} leave nothing of the "
                    f"finetune_epochs {self.finetune_epochs:g} for the last; give more of them or shorter rounds"
                )
        early = (each, self.round_lr or self.finetune_lr)
        return [early] * (rounds - 1) + [(steps - each * (rounds - 1), self.finetune_lr)]

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Learning rate at a step of a stage that is ``steps`` long."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return peak * (step + 1) / warm
        progress = (step - warm) / max(1, steps - warm)
        if self.schedule == "constant":
            return peak
        if self.schedule == "exponential":
            return peak * (self.final_lr / peak) ** progress
        return self.final_lr + (peak - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


DEFAULTS: dict[str, Budget] = {
    "digits": Budget(epochs=40, finetune_epochs=20, batch_size=64, lr=0.1, finetune_lr=0.05),
    "fashion-mnist": Budget(epochs=3, finetune_epochs=1, batch_size=128, lr=0.1, finetune_lr=0.05),
    "photopatch-27": Budget(epochs=6, finetune_epochs=2, batch_size=128, lr=0.1, finetune_lr=0.05),
    "cifar10-jpeg": Budget(epochs=20, finetune_epochs=5, batch_size=128, lr=0.1, finetune_lr=0.02),
    "pneumonia-mnist": Budget(epochs=8, finetune_epochs=3, batch_size=64, lr=0.05, finetune_lr=0.02),
    # Those of papers on pruning: hours to days even on an accelerator, so lower the epochs to try.
    "cifar10": Budget(epochs=160, finetune_epochs=40, batch_size=128, lr=0.1, finetune_lr=0.02),
    "cifar100": Budget(epochs=160, finetune_epochs=40, batch_size=128, lr=0.1, finetune_lr=0.02),
    "tiny-imagenet": Budget(epochs=100, finetune_epochs=30, batch_size=256, lr=0.2, finetune_lr=0.02),
    "imagenet": Budget(
        epochs=90, finetune_epochs=30, batch_size=2048, lr=0.8, finetune_lr=0.08, weight_decay=1e-4, warmup=5 / 90
    ),
    "criteo": Budget(1, 0.5, batch_size=2048, lr=1e-3, finetune_lr=5e-4, weight_decay=0.0, optimizer="adamw"),
    "movielens-100k": Budget(4, 2, batch_size=256, lr=1e-3, finetune_lr=5e-4, weight_decay=1.0, optimizer="adamw"),
}


def default_budget(data: str) -> Budget:
    """The budget of a known data set, or the general one."""
    return DEFAULTS.get(data, Budget())
