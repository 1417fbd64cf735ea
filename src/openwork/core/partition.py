"""Which weights live and die together: the interface between structures and everything that ranks or removes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from openwork.core.across import Across

Pool = Literal["sum", "mean", "max", "norm"]


@runtime_checkable
class Partition(Protocol):
    """Which entries of which tensors live and die together.

    Laws (tested): ``pool(spread(u), "mean") == u``; ``pool(ones, "sum") == cost``; ``spread`` keeps shapes.
    """

    @property
    def members(self) -> tuple[str, ...]: ...
    @property
    def n_units(self) -> int: ...
    @property
    def cost(self) -> Tensor:
        """``[n_units]`` parameters behind each unit."""
        ...

    @property
    def quota(self) -> tuple[int, int] | None:
        """(keep, of) when the structure itself fixes the share inside every run (N:M); else None."""
        ...

    def scope(self) -> int | Tensor | Across | None:
        """Regions of equal quota: None, the length of consecutive runs, one region id per unit, or several ranks."""
        ...

    def pool(self, values: Mapping[str, Tensor], how: Pool = "sum") -> Tensor:
        """Tensor-shaped values -> one value per unit ``[n_units]``."""
        ...

    def spread(self, units: Tensor) -> dict[str, Tensor]:
        """One value per unit (any dtype, differentiable) -> tensor-shaped, per member."""
        ...
