"""Pruned models that run: layers on packed weights, chosen by measuring."""

from openwork.runtime.layers import Packed, PackedConv2d, PackedLinear
from openwork.runtime.pack import pack
from openwork.runtime.plan import Choice, Plan
from openwork.runtime.verdict import Verdict, verdict

__all__ = ["Choice", "Packed", "PackedConv2d", "PackedLinear", "Plan", "Verdict", "pack", "verdict"]
