"""Filters without a graph: where torch.export gives up, single layers still have outputs that masks can clear."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from openwork.graph.example import Example
from openwork.graph.groups import Frozen, Group, Groups, Site
from openwork.graph.reader import Reading
from openwork.graph.trace import device_of, quiet


def loose_groups(model: nn.Module, example: Example, why: str) -> Groups:
    """One group for the outputs of every linear or convolution layer: its filters and its bias, and nothing else.

    The model runs once, forward. Layers stay whole when they make the model's outputs (no other layer stands in
    between), did not run on the example, or share their weight; everything else stays because there is no graph.

    Args:
        model: with values.
        example: what it is called with.
        why: the reason that there is no graph.

    Raises:
        Exception: whatever the forward pass raises.
    """
    layers = {m: path for path, m in model.named_modules() if _outputs(m) is not None}
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    ran, last = _run(model, example, list(layers))
    groups: list[Group] = []
    reasons: dict[str, str] = {}
    for module, path in layers.items():
        stem = f"{path}." if path else ""
        weight, bias, dim = module._parameters["weight"], module._parameters.get("bias"), _outputs(module)
        assert weight is not None
        assert dim is not None
        if uses[id(weight)] > 1:
            reasons[f"{stem}weight"] = "its weight is shared, and there is no graph"
        elif module not in ran:
            reasons[f"{stem}weight"] = "did not run on the example, and there is no graph"
        elif module in last:
            reasons[f"{stem}weight"] = "makes outputs of the model"
        elif weight.shape[dim] > 1:
            labels = torch.arange(weight.shape[dim])
            sites = [Site(f"{stem}weight", dim, labels, False, True)]
            sites += [Site(f"{stem}bias", 0, labels, False, True)] if bias is not None else []
            groups.append(Group(f"{stem}weight", "channels", len(labels), tuple(sites)))
    inside = {s.tensor for g in groups for s in g.sites}
    frozen = [
        Frozen(name, dim, n, reasons.get(name, f"there is no graph ({why})"))
        for name, p in model.named_parameters()
        if name not in inside
        for dim, n in enumerate(p.shape or (1,))
    ]
    return Groups(groups, frozen, {}, 0, 0.0, Reading())


def _outputs(module: nn.Module) -> int | None:
    """The dimension of the weight that counts the outputs of a layer; None for other modules."""
    if module._parameters.get("weight") is None:
        return None
    if isinstance(module, nn.modules.conv._ConvNd):
        return (1 if module.groups == 1 else None) if module.transposed else 0
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return 1
    return 0 if isinstance(module, nn.Linear) else None


def _run(model: nn.Module, example: Example, layers: list[nn.Module]) -> tuple[set[nn.Module], set[nn.Module]]:
    """The layers that ran, and those among them that no other layer separates from the outputs."""
    made: dict[Any, nn.Module] = {}

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                made[tensor.grad_fn] = module

    args, kwargs = example.tensors(device_of(model), seed=0)
    leaves = {n: p.detach().requires_grad_(p.is_floating_point()) for n, p in model.named_parameters()}
    handles = [m.register_forward_hook(hook) for m in layers]
    try:
        with quiet(model), torch.enable_grad():
            outputs = tree_leaves(functional_call(model, leaves, args, kwargs))
    finally:
        for handle in handles:
            handle.remove()
    last: set[nn.Module] = set()
    stack = [t.grad_fn for t in outputs if isinstance(t, Tensor)]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            last.add(made[node])
        else:
            stack.extend(above for above, _ in node.next_functions)
    return set(made.values()), last
