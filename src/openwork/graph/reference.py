"""The masked network as the small one must compute it: every statistic is taken over the entries that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

from openwork.graph.axes import Axis, find
from openwork.graph.groups import Graph
from openwork.graph.values import Value

STATISTICS = {
    "aten.layer_norm", "aten.rms_norm", "aten.group_norm", "aten.mean", "aten.sum", "aten.var", "aten.std", "aten.amax",
    "aten.amin", "aten.linalg_vector_norm", "aten.softmax", "aten._softmax", "aten.log_softmax", "aten.topk",
}  # fmt: skip
PICKS = {"aten.softmax", "aten._softmax", "aten.log_softmax", "aten.topk"}


def run_reference(
    model: nn.Module, graph: Graph, alive: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    """The outputs of the dense-shaped, masked model, flattened, with statistics over the units alive.

    Normalisations count only what stays, and routers choose among the experts that stay. Everything else is the traced
    graph as it is.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    given = graph.inputs_of(tensors, (args, kwargs))
    with torch.no_grad():
        out = _Reference(graph, alive).run(*given)
    return [t for t in tree_leaves(out) if isinstance(t, Tensor)]


class _Reference(Interpreter):
    def __init__(self, graph: Graph, alive: Mapping[str, Tensor]):
        super().__init__(graph.traced.module)
        self._known, self._graph, self._alive = graph.reading.nodes, graph, alive

    def run_node(self, n: Node) -> Any:
        name = str(getattr(n.target, "overloadpacket", ""))
        if name in STATISTICS and n in self._known:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            read, _ = self._known[n]
            keeps = self._keeps(read[0].axes, _reduced(name, args, kwargs))
            if keeps:
                assert callable(n.target)
                return self._over(n.target, name, keeps, list(args), kwargs, read)
        return super().run_node(n)

    def _keeps(self, axes: Sequence[Axis], dims: set[int]) -> dict[int, Tensor]:
        """Dimension -> entries that stay, where some do not."""
        masks = {dim: self._mask(axes[dim]) for dim in dims}
        return {dim: mask.nonzero().flatten() for dim, mask in masks.items() if not bool(mask.all())}

    def _mask(self, axis: Axis) -> Tensor:
        axis = find(axis)
        if axis.parts:
            masks = [self._mask(part) for part in axis.parts]
            if axis.kind == "cat":
                return torch.cat(masks)
            made = masks[0]
            for mask in masks[1:]:
                made = (made[:, None] & mask[None, :]).flatten()
            return made
        name, unit = self._graph.owner.get(id(axis), ("", -1))
        if name not in self._alive:
            return torch.ones(axis.size, dtype=torch.bool)
        return self._alive[name] if unit < 0 else self._alive[name][unit].expand(axis.size)

    def _over(
        self, target: Any, name: str, keeps: dict[int, Tensor], args: list[Any], kwargs: dict[str, Any], read: Any
    ) -> Any:
        x = args[0]
        if name in PICKS:
            low = torch.full_like(x, float("-inf"))
            for dim, keep in keeps.items():
                low.index_copy_(dim, keep, x.index_select(dim, keep))
            return target(low, *args[1:], **kwargs)
        for dim, keep in keeps.items():
            args[0] = args[0].index_select(dim, keep.to(x.device))
        if "norm" in name and name != "aten.linalg_vector_norm":
            for i, value in enumerate(read):
                if i and isinstance(value, Value) and isinstance(args[i], Tensor):
                    for d in range(args[i].ndim):
                        dim = 1 if name == "aten.group_norm" else x.ndim - args[i].ndim + d
                        if dim in keeps:
                            args[i] = args[i].index_select(d, keeps[dim].to(x.device))
            if name != "aten.group_norm":
                args[1] = list(args[0].shape[-len(args[1]) :])
            else:
                args[1] = _groups_left(args[1], x.shape[1], keeps.get(1))
        out = target(*args, **kwargs)
        if "norm" in name and out.ndim == x.ndim and name != "aten.linalg_vector_norm":
            for dim, keep in keeps.items():
                size = list(out.shape)
                size[dim] = x.shape[dim]
                out = out.new_zeros(size).index_copy_(dim, keep.to(x.device), out)
        return out


def _reduced(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[int]:
    """The dimensions of the first argument that a statistic runs over."""
    rank = args[0].ndim
    if name in ("aten.layer_norm", "aten.rms_norm"):
        return set(range(rank - len(args[1]), rank))
    if name == "aten.group_norm":
        return {1}
    at = {"aten.topk": 2, "aten.linalg_vector_norm": 2}.get(name, 1)
    dims = kwargs.get("dim", args[at] if len(args) > at else -1 if name == "aten.topk" else None)
    if dims is None or isinstance(dims, bool | float) or dims == []:
        return set(range(rank))
    return {d % rank for d in ([dims] if isinstance(dims, int) else dims)}


def _groups_left(groups: int, channels: int, keep: Tensor | None) -> int:
    if keep is None:
        return groups
    return int(torch.unique(keep // (channels // groups)).numel())
