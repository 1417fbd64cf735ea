"""The stage between pruning and fine-tuning of a coupled structure: cut, prove, count before and after."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.engine.result import Result
from openwork.graph.example import Example
from openwork.graph.plan import Plan, finished
from openwork.graph.trace import GraphRefused
from openwork.ship import compact, verify
from openwork.zoo.hugging_face import known_source


def shrunk(model: nn.Module, result: Result, batch: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """The small model and what it saves.

    Args:
        model: the pruned model.
        result: of pruning it with a coupled structure.
        batch: real inputs on which both models are compared.

    Returns:
        The compacted model, and ``{"params": [before, after], "macs": ..., "bytes": ..., "max_error": ...,
        "largest": ..., "reference": ...}``; multiply-accumulates of one input. Where torch.export refuses the model,
        the model itself with its zeros, nothing, and a warning.

    Raises:
        OpenworkError: compaction refuses the model, or the small one computes something else.
    """
    structure: Any = result.recipe.structure
    device = next(model.parameters()).device
    example: Example = structure.example
    try:
        small = compact(model, result)
    except GraphRefused as problem:
        warnings.warn(f"nothing is cut, the zeros stay in place: {problem}", stacklevel=2)
        return model, {}
    small.train(model.training)
    found = verify(small, model, batch.to(device) if _takes(example, batch) else example)
    cost = structure.cost(model, result.recipe.where)
    alive = {n: u.cpu() for n, u in result.units.items()}
    costs = {unit: [int(cost(unit, {})), int(cost(unit, alive))] for unit in ("params", "macs", "bytes")}
    equality = {"max_error": found.max_error, "largest": found.largest, "reference": found.reference}
    return small, {**costs, **equality}


def recut(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """The small model of a stopped run, from the dense one and the plan in its checkpoint; weights come later."""
    known = Plan.from_dict(plan)
    return finished(known.apply(model), known, known_source(model))


def _takes(example: Example, batch: Tensor) -> bool:
    """Whether a batch of the data is what the model is called with: one tensor of the same shape after the first."""
    if len(example.args) != 1 or example.values:
        return False
    first = example.args[0]
    return tuple(getattr(first, "shape", ())[1:]) == tuple(batch.shape[1:]) and batch.dtype == getattr(
        torch, getattr(first, "dtype", "float32")
    )


def met(told: Mapping[str, Any]) -> list[str]:
    """How a target was met, in a line or two."""
    share = f"{told['reached']:,.6g} of {told['dense']:,.6g} ({told['share']:.4f})"
    line = f"target {told['unit']} {told['asked']:g}: {share}"
    if "measured_ms" not in told:
        return [line]
    found = f"{told['measured_ms']:.3f} ms of {told['measured_dense_ms']:.3f} ({told['measured_share']:.4f})"
    return [f"{line}, by the table", f"measured {found}: the table is off by {100 * told['table_error']:+.1f} %"]


def savings(told: Mapping[str, Any]) -> list[str]:
    """What ``shrunk`` found, one line each.

    Examples:
        >>> told = {"params": [10, 5], "macs": [40, 8], "bytes": [40, 20], "max_error": 0, "reference": "masked model"}
        >>> savings(told)[0]
        'parameters            10 -> 5 (0.5000)'
    """
    words = {"params": "parameters", "macs": "multiply-accumulates", "bytes": "bytes"}
    pairs = [(word, *told[unit]) for unit, word in words.items()]
    lines = [f"{word:<21} {before:,} -> {after:,} ({after / before:.4f})" for word, before, after in pairs]
    return [*lines, f"outputs equal to {told['max_error']:.1e} ({told['reference']})"]
