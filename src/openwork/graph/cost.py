"""What a network costs when some of its units are gone: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from openwork.graph.attributes import width
from openwork.graph.axes import Axis
from openwork.graph.groups import Groups, build_graph

UNITS = ("params", "macs", "bytes")


@dataclass(frozen=True)
class Cost:
    """Cost as a function of the units alive, from the graph and not from a profiler.

    Counted are linear and convolution layers (grouped ones per group), products of activations, attention (queries
    with keys, weights with values), recurrent layers and stacked experts (for the rows that the example sends there);
    elementwise operations, norms and lookups count nothing. One multiply-accumulate is two floating-point operations.
    """

    graph: Groups
    tensors: tuple[tuple[str, int], ...]
    """Parameters and the bytes of one entry."""

    def __call__(self, unit: str, alive: Mapping[str, Tensor]) -> int:
        """Parameters, bytes of the parameters, or multiply-accumulates of one pass over the example."""
        if unit == "macs":
            return sum(self._size(term, alive) for term in self.graph.reading.notes.macs)
        sites = self.graph.reading.sites
        return sum(self._size(sites[n], alive) * (size if unit == "bytes" else 1) for n, size in self.tensors)

    def _size(self, axes: tuple[Axis, ...], alive: Mapping[str, Tensor]) -> int:
        total = 1
        for axis in axes:
            total *= width(axis, self.graph, alive)
        return total


def cost_of(model: nn.Module, graph: Groups) -> Cost:
    """The cost function of a model whose graph is known."""
    return Cost(graph, tuple((n, p.element_size()) for n, p in model.named_parameters()))


def count_macs(model: nn.Module, example: Any) -> int:
    """Multiply-accumulates of one forward pass on an example, attention on any device included.

    Examples:
        >>> import torch
        >>> count_macs(nn.Linear(4, 3), torch.zeros(2, 4))
        24
    """
    graph = build_graph(model, example)
    return cost_of(model, graph)("macs", {})
