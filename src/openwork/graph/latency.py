"""Milliseconds of one forward pass as a function of the units alive, from a table of measured operations."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from openwork.graph.attributes import width
from openwork.graph.axes import Axis
from openwork.graph.example import Example, arguments
from openwork.graph.groups import Graph, build_graph
from openwork.graph.shrink import shrink
from openwork.graph.trace import device_of, quiet
from openwork.graph.values import Value

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Shares of units at which whole small models are measured for the table."""
ROUNDS = 15


@dataclass
class LatencyTable:
    """What every operation of a model takes, measured in small models of several widths, each operation by its work.

    The work of an operation is its multiply-accumulates, of others the entries that it writes. Between two measured
    models the time of an operation is taken on a straight line over its work, and the sum of all operations is scaled
    to what the whole models took. So the table is exact (up to noise) where it was measured, and an estimate between;
    ``checked`` measures what it promises.

    Times are the fastest of several rounds in which all models take turns, with the threads that torch has now.
    """

    model: nn.Module
    graph: Graph
    kinds: tuple[str, ...]
    example: Example
    work: list[dict[str, float]]
    times: list[dict[str, float]]
    whole: list[float]
    """Milliseconds of the whole models, dense first."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: Graph,
        kinds: Sequence[str],
        example: Example,
        shares: Sequence[float] = SHARES,
        rounds: int = ROUNDS,
    ) -> LatencyTable:
        """Build and measure small models in which every group of these kinds keeps its first units."""
        table = cls(model, graph, tuple(kinds), example, [], [], [])
        smalls = [table.small(table.first(share)) if share < 1 else model for share in shares]
        for share, small in zip(shares, smalls, strict=True):
            table.work.append(table.work_of(table.first(share)))
            table.times.append(_nodes(small, example, rounds))
        table.whole = [1000 * t for t in measure_latency(smalls, example, rounds)]
        return table

    def first(self, share: float) -> dict[str, Tensor]:
        """The first units of every group."""
        return {g.name: torch.arange(g.n_units) < max(1, round(share * g.n_units)) for g in self.graph.of(*self.kinds)}

    def small(self, alive: Mapping[str, Tensor]) -> nn.Module:
        """The small model of a choice of units; weights matter only for the check of its shapes."""
        masked = copy.deepcopy(self.model)
        tensors = dict(masked.named_parameters())
        with torch.no_grad():
            for group in self.graph.groups:
                for site in group.sites:
                    if group.name in alive and site.parameter:
                        gone = (site.labels >= 0) & ~alive[group.name].cpu()[site.labels.clamp(min=0)]
                        tensors[site.tensor].index_fill_(site.dim, gone.nonzero().flatten().to(self.device), 0.0)
        return shrink(masked, self.graph, alive, self.example)[1]

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    def work_of(self, alive: Mapping[str, Tensor]) -> dict[str, float]:
        """Node -> multiply-accumulates, or entries written."""

        def size(axes: Sequence[Axis]) -> float:
            total = 1.0
            for axis in axes:
                total *= width(axis, self.graph, alive)
            return total

        found = {}
        for node, (_, value) in self.graph.reading.nodes.items():
            products = self.graph.reading.products.get(node)
            outputs = [value] if isinstance(value, Value) else list(value) if isinstance(value, list | tuple) else []
            written = sum(size(v.axes) for v in outputs if isinstance(v, Value))
            found[node.name] = sum(map(size, products)) if products else written
        return found

    def __call__(self, unit: str, alive: Mapping[str, Tensor]) -> float:
        """Milliseconds of one pass."""
        work = self.work_of(alive)
        total = sum(_line(w, [x[n] for x in self.work], [t.get(n, 0.0) for t in self.times]) for n, w in work.items())
        sums = [sum(t.get(n, 0.0) for n in work) for t in self.times]
        return total * _line(total, sums, [w / s for w, s in zip(self.whole, sums, strict=True)])

    def checked(self, alive: Mapping[str, Tensor], rounds: int = 2 * ROUNDS) -> dict[str, float]:
        """What the table promises for a choice of units, and what the small model really takes beside the dense one."""
        small = self.small({n: u.cpu() for n, u in alive.items()})
        dense_ms, small_ms = (1000 * t for t in measure_latency([self.model, small], self.example, rounds))
        promised = self("latency_ms", {n: u.cpu() for n, u in alive.items()})
        share = small_ms / dense_ms
        return {
            "measured_ms": small_ms,
            "measured_dense_ms": dense_ms,
            "measured_share": share,
            "table_error": promised / self.whole[0] / share - 1,
        }


def _line(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """``y`` at ``x`` on the straight lines through the points; beyond the ends the value of the end."""
    points = sorted(zip(xs, ys, strict=True))
    if x <= points[0][0]:
        return points[0][1]
    for (a, low), (b, high) in pairwise(points):
        if x <= b:
            return low + (high - low) * (x - a) / (b - a) if b > a else low
    return points[-1][1]


def measure_latency(models: Sequence[nn.Module], example: Any, rounds: int = ROUNDS) -> list[float]:
    """Seconds of a forward pass of every model on the example: the fastest of ``rounds``, taken in turn.

    Examples:
        >>> few, many = measure_latency([nn.Linear(512, 8), nn.Linear(512, 65536)], torch.zeros(4, 512))
        >>> few < many
        True
    """
    best = [float("inf")] * len(models)
    calls = [_call(m, example) for m in models]
    for i in range(rounds + 2):
        for k, (model, call) in enumerate(zip(models, calls, strict=True)):
            with quiet(model), torch.inference_mode():
                seconds = _timed(call, device_of(model))
            if i > 1:
                best[k] = min(best[k], seconds)
    return best


def _call(model: nn.Module, example: Any) -> Callable[[], Any]:
    args, kwargs = arguments(example, device_of(model), seed=0)
    return lambda: model(*args, **kwargs)


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class _Stopwatch(Interpreter):
    """Runs a graph node by node and keeps the fastest time of every node, in milliseconds."""

    def __init__(self, graph: Graph):
        super().__init__(graph.traced.module)
        self.best: dict[str, float] = {}
        self._device = next((t.device for t in graph.traced.values.values()), torch.device("cpu"))

    def run_node(self, n: Node) -> Any:
        made: list[Any] = []
        seconds = _timed(lambda: made.append(super(_Stopwatch, self).run_node(n)), self._device)
        if n.op == "call_function":
            self.best[n.name] = min(self.best.get(n.name, float("inf")), 1000 * seconds)
        return made[0]


def _nodes(model: nn.Module, example: Example, rounds: int) -> dict[str, float]:
    graph = build_graph(model, example)
    watch = _Stopwatch(graph)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    given = graph.inputs_of(tensors, arguments(example, device_of(model), seed=0))
    with torch.inference_mode():
        for _ in range(rounds):
            watch.run(*given)
    return watch.best
