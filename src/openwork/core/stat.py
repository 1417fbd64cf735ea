"""A statistic: the request for a measurement, and how it is measured."""

from __future__ import annotations

from typing import Any, ClassVar

from openwork.core.measuring import Measuring
from openwork.errors import OpenworkError


class Stat:
    """A statistic is the request and the collector; children are frozen dataclasses, equal ones are measured once."""

    needs_data: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = False
    sharded: ClassVar[bool] = False
    """True: can be measured where parameters are sharded over the ranks."""

    def measure(self, ctx: Measuring) -> Any:
        """Measure on the model of ``ctx`` without changing it."""
        raise OpenworkError(f"{type(self).__name__} does not say how it is measured")
