"""Proof by running: a small model must compute what the pruned one does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import StructureError, VerificationFailed
from openwork.graph.compare import difference, outputs_of, reference_of, with_ids
from openwork.graph.example import Example, arguments
from openwork.graph.groups import Graph, build_graph
from openwork.graph.plan import Plan
from openwork.graph.trace import device_of


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
        VerificationFailed: outputs differ, in shape or by more than ``atol``; the first such output is named. Or there
            is no number in them.
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
    graph = build_graph(masked, Example.of(example)) if plan.over else None
    alive = units_of(plan, graph) if graph is not None else {}
    wanted = reference_of(masked, graph, alive, plan, args, kwargs)
    args, kwargs = with_ids(plan, args, kwargs)
    try:
        got = outputs_of(small, args, kwargs)
    except Exception as failure:  # the pruned model runs on it, the small one fails in its own ways
        raise VerificationFailed(
            f"{type(small).__name__}: the small model does not run on this example, on which the pruned one does "
            f"({type(failure).__name__}: {failure}); does it take another way through the model than the example that "
            f"was pruned with? {'; '.join(plan.notes)}".rstrip()
        ) from failure
    problem = difference(got, wanted, atol)
    if problem:
        raise VerificationFailed(f"{type(small).__name__}: the small model differs from the pruned one: {problem}")
    pairs = [(a, b) for a, b in zip(got, wanted, strict=True) if a.numel()]
    if not pairs:
        raise VerificationFailed(f"{type(small).__name__}: the example gives no numbers to compare; pass another one")
    error = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    largest = max(float(b.abs().max()) for _, b in pairs)
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
