"""The counts that another criterion would get: a random mask with the layer shares of a real method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from openwork.allocation.overall import Global
from openwork.core.now import Now
from openwork.core.protocols import Allocation, Criterion
from openwork.criteria.weights import Magnitude
from openwork.errors import RecipeError


@dataclass(frozen=True)
class Borrowed:
    """Every partition keeps as many units as ``allocation`` gives it for the scores of ``criterion``.

    Which units stay is decided by the scores of the rule. With random scores this is the control that tells a good
    choice of weights from a good choice of layer shares. The criterion may not need statistics.
    """

    criterion: Criterion = field(default_factory=Magnitude)
    allocation: Allocation = field(default_factory=Global)

    def __post_init__(self) -> None:
        if self.criterion.needs:
            raise RecipeError(
                f"Borrowed: the criterion must need no statistics, got {type(self.criterion).__name__}; "
                "borrow the counts of Magnitude"
            )

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        theirs = {name: self.criterion(now.parts[name], now) for name in scores}
        return self.allocation(now, theirs, share)
