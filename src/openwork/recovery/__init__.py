"""Repair of pruned models with masks fixed."""

from openwork.recovery.perp import Perp as Perp
