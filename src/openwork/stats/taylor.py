"""First-order Taylor importance of whole units, squared batch by batch so that batches cannot cancel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openwork.core.measuring import Measuring, Mode
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.errors import RecipeError
from openwork.stats.gradients import each_gradient

Importance = Callable[[Mapping[str, Tensor]], dict[tuple[str, ...], Tensor]]


def key(part: Partition) -> tuple[str, ...]:
    """What tells a partition from the others of a model: its name, if it has one, and its tensors."""
    return (getattr(part, "name", ""), *part.members)


@dataclass(frozen=True)
class UnitImportance(Stat):
    """``sum over batches of (sum over the unit of w dL/dw)^2``, ``[n_units]`` for every partition, by ``key(part)``.

    The value is a function of the masks; the batches are drawn once. One gradient is in memory at a time.
    """

    needs_loss: ClassVar[bool] = True
    sharded: ClassVar[bool] = True
    batches: int = 8
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise RecipeError(f"UnitImportance: batches must be at least 1, got {self.batches}")

    def measure(self, ctx: Measuring) -> Importance:
        seen = [ctx.feed.next(f"{self.batches} scoring batches") for _ in range(self.batches)]

        def importance(masks: Mapping[str, Tensor]) -> dict[tuple[str, ...], Tensor]:
            total: dict[tuple[str, ...], Tensor] = {}

            def see(weights: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
                products = {n: w * grads[n] for n, w in weights.items()}
                for part in ctx.parts.values():
                    score = part.pool({m: products[m] for m in part.members}).square()
                    total[key(part)] = total.get(key(part), 0.0) + score

            each_gradient(ctx, masks, seen, self.mode, see)
            return total

        return importance
