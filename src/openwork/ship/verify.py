"""Proof by running: a small model must compute what the pruned one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from openwork.errors import StructureError, VerificationFailed
from openwork.graph.example import Example, arguments
from openwork.graph.groups import Graph, build_graph
from openwork.graph.plan import Plan
from openwork.graph.reference import run_reference
from openwork.graph.trace import device_of, quiet

LOOSE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference by dtype, times the largest output where that is above 1."""


@dataclass(frozen=True)
class Verification:
    """What was compared. ``reference`` says against what; ``over`` lists statistics that run over fewer entries."""

    max_error: float
    largest: float
    outputs: int
    reference: str
    over: tuple[str, ...] = ()


def verify(small: nn.Module, masked: nn.Module, example: Any, *, atol: float | None = None) -> Verification:
    """Compare a compacted model with the pruned one on an example.

    Where a normalisation or a router's softmax runs over removed units (``ow.hidden``, ``ow.experts``), zeros in the
    masked model still count in its statistics and the small model has none of them; the reference is then the masked
    model with these statistics taken over the units that stay, and the answer says so.

    Args:
        small: made by ``ow.compact``.
        masked: the pruned model that it was made from.
        example: a batch; an ``Example`` or shapes give random values.
        atol: largest difference, times the largest output where that is above 1; None takes 1e-5 for float32.

    Raises:
        VerificationFailed: outputs differ, in shape or by more than ``atol``; the first such output is named.
        StructureError: ``small`` does not come from ``ow.compact``.

    Examples:
        >>> import openwork as ow
        >>> from openwork.methods import magnitude
        >>> x, model = torch.randn(2, 1, 8, 8), ow.build_model("mlp")
        >>> result = ow.prune(model, magnitude(density=0.5, structure=ow.channels(example=x)))
        >>> verify(ow.compact(model, result), model, x).reference
        'masked model'
    """
    plain = getattr(small, "openwork_compaction", None)
    if plain is None:
        raise StructureError(f"{type(small).__name__} has no compaction plan; verify compares what ow.compact returned")
    plan = Plan.from_dict(plain)
    args, kwargs = arguments(example, device_of(masked), seed=0)
    if plan.over:
        graph = build_graph(masked, Example.of(example))
        wanted = run_reference(masked, graph, units_of(plan, graph), args, kwargs)
    else:
        wanted = outputs_of(masked, args, kwargs)
    got = outputs_of(small, args, kwargs)
    problem = difference(got, wanted, atol)
    if problem:
        raise VerificationFailed(f"{type(small).__name__}: the small model differs from the pruned one: {problem}")
    pairs = [(a, b) for a, b in zip(got, wanted, strict=True) if a.numel()]
    error = max((float((a.double() - b.double()).abs().max()) for a, b in pairs), default=0.0)
    largest = max((float(b.abs().max()) for _, b in pairs), default=0.0)
    reference = "masked model, statistics over the units that stay" if plan.over else "masked model"
    return Verification(error, largest, len(pairs), reference, plan.over)


def units_of(plan: Plan, graph: Graph) -> dict[str, Tensor]:
    """Which units a plan keeps, read back from its cuts."""
    keeps = {(c.tensor, c.dim): torch.zeros(c.size, dtype=torch.bool).index_fill(0, c.index(), True) for c in plan.cuts}
    alive = {}
    for group in graph.groups:
        if plan.units.get(group.name, (0, 0))[0] == group.n_units or group.name not in plan.units:
            continue
        units = torch.zeros(group.n_units, dtype=torch.bool)
        for site in group.sites:
            keep = keeps[site.tensor, site.dim]
            units[site.labels[keep & (site.labels >= 0)]] = True
        alive[group.name] = units
    return alive


def reference_of(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor], plan: Plan, example: Any) -> list[Tensor]:
    """What the small model must compute on an example."""
    args, kwargs = arguments(example, device_of(model), seed=0)
    return run_reference(model, graph, alive, args, kwargs) if plan.over else outputs_of(model, args, kwargs)


def outputs_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors that a model returns, in eval mode, without a key-value cache."""
    with quiet(model), torch.no_grad():
        return [t for t in tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]


def difference(got: Sequence[Tensor], wanted: Sequence[Tensor], atol: float | None = None) -> str:
    """What differs first, in words; empty when nothing does."""
    if len(got) != len(wanted):
        return f"{len(got)} outputs instead of {len(wanted)}"
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a.shape != b.shape:
            return f"output {i} has shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        if not a.numel():
            continue
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return f"output {i} ({a.dtype}) is not equal"
            continue
        finite = torch.isfinite(b)
        x, y = a[finite].double(), b[finite].double()
        largest = float(y.abs().max()) if y.numel() else 0.0
        bound = (LOOSE.get(a.dtype, 1e-5) if atol is None else atol) * max(1.0, largest)
        error = float((x - y).abs().max()) if y.numel() else 0.0
        if not error <= bound or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
            return f"output {i} by {error:.3g}, allowed {bound:.3g}"
    return ""
