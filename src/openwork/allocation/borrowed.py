"""The counts that another criterion would get: a random mask with the layer shares of a real method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from openwork.allocation.overall import Global
from openwork.core.now import Now
from openwork.core.protocols import Allocation, Criterion
from openwork.core.stat import Stat
from openwork.criteria.weights import Magnitude
from openwork.errors import RecipeError


@dataclass(frozen=True)
class Borrowed:
    """Every partition keeps as many units as ``allocation`` gives it for the scores of ``criterion``.

    Which units stay is decided by the scores of the rule. With random scores this is the control that tells a good
    choice of weights from a good choice of layer shares. What the criterion measures is measured for the rule.
    """

    criterion: Criterion = field(default_factory=Magnitude)
    allocation: Allocation = field(default_factory=Global)

    @property
    def needs(self) -> frozenset[Stat]:
        return self.criterion.needs | getattr(self.allocation, "needs", frozenset())

    @property
    def sharded(self) -> bool:
        return all(getattr(p, "sharded", False) for p in (self.criterion, self.allocation))

    def __post_init__(self) -> None:
        if getattr(self.criterion, "needs_grads", False):
            raise RecipeError(
                f"Borrowed: {type(self.criterion).__name__} reads the gradients of a training step, which a rule asks "
                "for; borrow the counts of a criterion that measures, or of Magnitude"
            )

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        theirs = {name: self.criterion(now.parts[name], now) for name in scores}
        return self.allocation(now, theirs, share)
