"""Everything that a rule needs, measured before it is asked."""

from __future__ import annotations

from typing import Any

from openwork.core.measuring import Measuring, seeded
from openwork.core.protocols import Rule
from openwork.core.stat import Stat
from openwork.errors import MissingStatistic


def refuse_missing(rule: Rule, ctx: Measuring) -> None:
    """Refuse before any work when a rule needs what this call does not offer."""
    for stat in sorted(rule.needs, key=repr):
        if stat.needs_data and ctx.feed.data is None:
            raise MissingStatistic(f"{type(stat).__name__} needs data; pass data=, an iterable of (x, y) batches")
        if stat.needs_loss and ctx.loss is None and not hasattr(ctx.model, "config"):  # these return their own loss
            raise MissingStatistic(f"{type(stat).__name__} needs a loss; pass loss=, for instance F.cross_entropy")


def measure(rule: Rule, ctx: Measuring) -> dict[Stat, Any]:
    """Measure everything a rule needs, each statistic once, under a fixed seed."""
    with seeded(ctx.seed):
        return {stat: stat.measure(ctx) for stat in sorted(rule.needs, key=repr)}
