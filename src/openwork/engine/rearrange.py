"""Channels in an order in which neighbours want the same inputs, so that groups of outputs lose less."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.targets import Select, Target, find_targets
from openwork.errors import StructureError
from openwork.graph.compare import difference, outputs_of
from openwork.graph.example import arguments
from openwork.graph.groups import Group, build_graph
from openwork.graph.permute import permuted
from openwork.graph.trace import device_of
from openwork.structure.alignment import align, kept_of
from openwork.structure.shapes import GroupOf

ATOL = {torch.float32: 1e-4}
"""Sums in another order differ by more in deep networks than two runs of one network."""


@dataclass(frozen=True, eq=False)
class Moved:
    """One set of coupled channels, and what its order does for the layers it was chosen for.

    ``before`` and ``after`` are the shares of their weight (squares, the mean over the layers) that groups keep;
    ``order[j]`` is the old channel at place j; ``why`` says why a set stays as it is.
    """

    name: str
    layers: tuple[str, ...]
    before: float
    after: float
    order: Tensor
    why: str = ""


@torch.no_grad()
def rearrange(
    model: nn.Module, structure: GroupOf, density: float, where: Select = Select(), *, example: Any, seed: int = 0
) -> list[Moved]:
    """Reorder the channels of a model in place; its function stays, and groups of outputs prune better afterwards.

    ``GroupOf(size, dim=0)`` lets ``size`` neighbouring outputs live and die together for every input. Which outputs are
    neighbours is an accident; this brings together those whose weights lie on the same inputs. What is coupled with
    them (norms, biases, depthwise kernels, the inputs of later layers, the other branches of a residual sum) moves
    along, so nothing is shuffled when the model runs.

    Call it before pruning, and before the optimiser is made, whose moments would not move.

    Args:
        model: changed in place; every tensor keeps its shape.
        structure: ``GroupOf(size, dim=0)``.
        density: share of the inputs that a group will keep, in (0, 1].
        where: the layers to order for.
        example: what the model is called with; outputs on it are compared after every move.
        seed: of the search.

    Returns:
        One row for every set of coupled channels that makes outputs of these layers. A move that changes the outputs is
        taken back, and its row says so.

    Raises:
        StructureError: another structure, a density outside (0, 1], weights that are not finite, or a selection that
            names nothing.
        GraphRefused: torch.export cannot follow the forward pass.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> moved = rearrange(model, GroupOf(4, dim=0), 0.25, example=torch.zeros(1, 8))
        >>> [(m.name, m.after >= m.before) for m in moved]
        [('0.weight', True)]

    References:
        After SparseByteNN (arXiv 2310.19509), of which only the abstract is public: scores are squares, the search is
        swaps from the given order and from one by likeness.
    """
    if not isinstance(structure, GroupOf) or structure.dim != 0:
        raise StructureError(f"rearrange: structure must be GroupOf(size, dim=0), got {structure!r}")
    if not isinstance(density, int | float) or not 0 < density <= 1:
        raise StructureError(f"rearrange: density must be in (0, 1], got {density!r}")
    targets = {t.name: t for t in find_targets(model, where)[0]}
    bad = next((n for n in targets if not bool(torch.isfinite(model.get_parameter(n)).all())), None)
    if bad is not None:
        raise StructureError(f"rearrange: {bad} holds NaN or infinite weights, so its channels have no order")
    graph = build_graph(model, example)
    args, kwargs = arguments(example, device_of(model), seed=0)
    wanted = outputs_of(model, args, kwargs)
    found = []
    for group in graph.of("channels", "hidden"):
        made = [targets[s.tensor] for s in group.sites if _makes(s.tensor, s.dim, s.labels, group, targets)]
        if not made:
            continue
        rows = [t.view.open(model.get_parameter(t.name).detach())[0].float().square().cpu() for t in made]
        keep = [max(1, math.floor(density * r.shape[1] + 0.5)) for r in rows]
        order = align(rows, structure.size, keep, seed)
        now = torch.arange(len(order))
        before, after = (_share(rows, o, structure.size, keep) for o in (now, order))
        why = "" if bool((order != now).any()) else "no swap keeps more"
        if not why:
            why = _move(
                model, group, order, lambda: difference(outputs_of(model, args, kwargs), wanted, _bound(wanted))
            )
        if why:
            order, after = now, before
        found.append(Moved(group.name, tuple(t.name for t in made), before, after, order, why))
    return found


def _makes(tensor: str, dim: int, labels: Tensor, group: Group, targets: dict[str, Target]) -> bool:
    """Whether a group's units are the outputs of a selected layer, one each and in order."""
    target = targets.get(tensor)
    if target is None or target.view.folded[0] != 1 or target.view.order[0] != dim:
        return False
    return len(labels) == group.n_units and bool((labels.cpu() == torch.arange(group.n_units)).all())


def _share(rows: list[Tensor], order: Tensor, size: int, keep: list[int]) -> float:
    shares = [
        float(kept_of(r, order, size, k).sum() / r.sum().clamp_min(1e-30)) for r, k in zip(rows, keep, strict=True)
    ]
    return sum(shares) / len(shares)


def _bound(wanted: list[Tensor]) -> float | None:
    return ATOL.get(wanted[0].dtype) if wanted else None


def _move(model: nn.Module, group: Group, order: Tensor, differs: Any) -> str:
    """Write the order; take it back and say why when the outputs are others."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    try:
        new = permuted(tensors, group, order)
    except StructureError as problem:
        return str(problem)
    old = {n: tensors[n].detach().clone() for n in new}
    for name, value in new.items():
        tensors[name].copy_(value)
    changed = differs()
    if changed:
        for name, value in old.items():
            tensors[name].copy_(value)
        return f"the outputs change ({changed})"
    return ""
