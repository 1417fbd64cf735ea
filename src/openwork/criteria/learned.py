"""Scores that a relaxation has learned."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.criteria.weights import Magnitude
from openwork.errors import MissingStatistic


class EqualGates(UserWarning):
    """Gates that have not learned to tell units apart when units are chosen."""


@dataclass(frozen=True)
class Learned:
    """The gate values of a soft relaxation, one per unit.

    Values that are all equal rank nothing: units with larger weights stay then, which is said in a warning.
    """

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset()

    def __call__(self, part: Partition, now: Now) -> Tensor:
        name = next(n for n, p in now.parts.items() if p is part)
        if name not in now.learned:
            raise MissingStatistic(f"{name}: no gate was learned; Learned() needs a soft relaxation and ow.attach")
        found = now.learned[name]
        if len(found) > 1 and bool((found == found[0]).all()):
            warnings.warn(
                f"{name}: all {len(found)} learned scores are equal, so the largest weights stay; train the gates "
                "before units are chosen, and see that their learning rate is not 0",
                EqualGates,
                stacklevel=2,
            )
            order = Magnitude()(part, now).argsort(stable=True).argsort()
            return found.double() * (1 + 1e-9 * order / len(found))  # ranks among themselves, level with other layers
        return found
