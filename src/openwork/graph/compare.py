"""What a smaller model must compute, and how two sets of outputs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from openwork.graph.groups import Graph
from openwork.graph.plan import Plan
from openwork.graph.reference import run_reference
from openwork.graph.trace import quiet

LOOSE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference by dtype, times the largest output where that is above 1."""


def reference_of(
    model: nn.Module,
    graph: Graph | None,
    alive: Mapping[str, Tensor],
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    """What the small model must compute: the masked model's outputs, statistics over what stays, tokens that stay."""
    args, kwargs = with_ids(plan, args, kwargs, renumber=False)
    if plan.over and graph is not None:
        found = run_reference(model, graph, alive, args, kwargs)
    else:
        found = outputs_of(model, args, kwargs)
    ids = plan.token_ids
    if ids is None:
        return found
    size = next(c.size for c in plan.cuts if c.kept == len(ids))
    picked = [t.ndim > 2 and t.shape[-1] == size for t in found]
    return [t.index_select(-1, ids.to(t.device)) if p else t for t, p in zip(found, picked, strict=True)]


def with_ids(
    plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], renumber: bool = True
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same inputs with tokens that are gone replaced by the first that stays, and renumbered for the small model.

    Token ids are the first input of integers, as in the graph.
    """
    ids = plan.token_ids
    if ids is None:
        return args, kwargs
    leaves, spec = tree_flatten((args, kwargs))
    at = next(
        (i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.dtype in (torch.int64, torch.int32)), None
    )
    if at is not None:
        old = leaves[at]
        place = torch.searchsorted(ids.to(old.device), old.long()).clamp(max=len(ids) - 1)
        place = torch.where(ids.to(old.device)[place] == old, place, 0)
        leaves[at] = (place if renumber else ids.to(old.device)[place]).to(old.dtype)
    made: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(leaves, spec)
    return made


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
