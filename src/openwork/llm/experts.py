"""STUN's first stage: drop whole experts that behave like others (Lee et al., ACL 2025, arXiv 2409.06211).

Experts whose router rows are close get similar tokens. Clusters of such experts are each replaced by one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from openwork.core.batches import device_of, forward, to_device
from openwork.errors import DivergedError, MissingStatistic, RecipeError, StructureError
from openwork.llm.run import evaluating

SIZES = ("num_local_experts", "num_experts", "n_routed_experts")
"""Attributes of modules and configs that hold the number of experts."""


@dataclass(frozen=True)
class Experts:
    """One mixture: the module of the fused weights ``(E, ...)`` and its router with rows ``(E, in)``."""

    name: str
    weights: nn.Module
    router: nn.Module

    @property
    def rows(self) -> Tensor:
        """``[experts, in]`` of the router."""
        return cast(Tensor, self.router.weight).detach()

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def flat(self) -> Tensor:
        """``[experts, parameters]`` float32."""
        return torch.cat([p.detach().float().flatten(1) for p in self.weights.parameters()], 1)

    @property
    def active(self) -> int:
        """Experts that a token is sent to."""
        return int(getattr(self.router, "top_k", 1))


def find_experts(model: nn.Module) -> dict[str, Experts]:
    """Name -> mixture, for every module with fused experts and a router beside them.

    Raises:
        StructureError: there is none.
    """
    found = {}
    for name, module in model.named_modules():
        weights = getattr(module, "experts", None)
        router = getattr(module, "gate", None) or getattr(module, "router", None)
        if not isinstance(weights, nn.Module) or not isinstance(router, nn.Module):
            continue
        fused = list(weights.parameters(recurse=False))
        rows = getattr(router, "weight", None)
        if fused and isinstance(rows, nn.Parameter) and rows.ndim == 2 and all(len(p) == len(rows) for p in fused):
            found[name] = Experts(name, weights, router)
    if not found:
        raise StructureError(
            f"{type(model).__name__}: no fused experts with a router beside them were found (modules `experts` and "
            "`gate` or `router`)"
        )
    return found


@torch.no_grad()
def coactivation(model: nn.Module, data: Iterable[Any]) -> dict[str, Tensor]:
    """``[experts, experts]`` per mixture: tokens that were sent to both experts; the diagonal counts those of one.

    One pass over the data, whatever the number of experts.

    Raises:
        MissingStatistic: a router that does not return the indices of its experts.
    """
    mixtures = find_experts(model)
    counts = {n: torch.zeros(m.count, m.count, dtype=torch.int64) for n, m in mixtures.items()}

    def count(name: str, output: Any) -> None:
        several = output if isinstance(output, tuple | list) else ()
        chosen = [t for t in several if isinstance(t, Tensor) and not t.is_floating_point()]
        if not chosen:
            raise MissingStatistic(f"{name}: its router does not return which experts it chose; use distances alone")
        hit = torch.zeros(chosen[0].reshape(-1, chosen[0].shape[-1]).shape[0], len(counts[name]))
        hit.scatter_(1, chosen[0].reshape(len(hit), -1).cpu(), 1.0)
        counts[name] += (hit.T @ hit).long()

    with ExitStack() as stack, evaluating(model):
        for name, mixture in mixtures.items():
            handle = mixture.router.register_forward_hook(lambda m, a, out, n=name: count(n, out))
            stack.callback(handle.remove)
        for batch in data:
            forward(model, to_device(batch, device_of(model)))
    return counts


def behaviour_distance(
    rows: Tensor, counts: Tensor | None = None, router: float = 1.0, together: float = 0.0
) -> Tensor:
    """``[experts, experts]`` float64: ``router |R_i - R_j| / |R| - together c_ij / mean |c|``, diagonal infinite.

    Args:
        rows: ``[experts, in]`` of the router.
        counts: of ``coactivation``; needed when ``together`` is not 0.
        router: weight of the first term; |R| is the Frobenius norm.
        together: weight of the second.

    Raises:
        DivergedError: a router that is not finite.
        RecipeError: counts are needed but missing.
    """
    rows = rows.double()
    if not bool(torch.isfinite(rows).all()):
        raise DivergedError("a router row holds NaN or infinity; experts cannot be compared")
    if together and counts is None:
        raise RecipeError("behaviour_distance: together= needs the counts of coactivation")
    found = router * torch.cdist(rows, rows) / rows.norm().clamp(min=1e-30)
    if together and counts is not None:
        off = counts.double().fill_diagonal_(0)
        mean = float(off.sum()) / max(1, len(off) * (len(off) - 1))
        found = found - together * off / (mean or 1.0)
    return found.fill_diagonal_(float("inf"))


def clusters_of(
    distances: Mapping[str, Tensor], remove: int, floor: Mapping[str, int]
) -> tuple[dict[str, list[list[int]]], float]:
    """Merge the two closest clusters of all mixtures, again and again, until exactly ``remove`` experts are gone.

    The distance of two clusters is the largest one between their members (complete linkage), so every pair in a cluster
    is at most the returned threshold apart.

    Args:
        distances: of every mixture.
        remove: experts in all.
        floor: clusters that a mixture keeps at least.

    Raises:
        RecipeError: the floors do not allow so many.
    """
    possible = sum(len(d) - floor[n] for n, d in distances.items())
    if not 0 <= remove <= possible:
        raise RecipeError(
            f"{remove} experts cannot be removed: the mixtures can lose {possible} (a token needs the rest)"
        )
    groups = {n: [[i] for i in range(len(d))] for n, d in distances.items()}
    apart = {n: d.clone().fill_diagonal_(float("inf")) for n, d in distances.items()}
    threshold = 0.0
    for _ in range(remove):
        open_ = [n for n, g in groups.items() if len(g) > floor[n]]
        name = min(open_, key=lambda n: float(apart[n].min()))
        d = apart[name]
        i, j = sorted(divmod(int(d.argmin()), len(d)))
        threshold = float(d[i, j])
        wide = torch.maximum(d[i], d[j])
        d[i], d[:, i] = wide, wide
        d[i, i] = float("inf")
        keep = [k for k in range(len(d)) if k != j]
        apart[name] = d[keep][:, keep]
        groups[name][i] += groups[name].pop(j)
    return {n: [sorted(g) for g in some] for n, some in groups.items()}, threshold


def representative(flat: Tensor, members: Sequence[int]) -> int:
    """The member whose weights lie closest to the mean of its cluster."""
    some = flat[list(members)]
    return members[int((some - some.mean(0)).norm(dim=1).argmin())]


@dataclass(frozen=True)
class Dropped:
    """``kept``: mixture -> the experts that stayed; ``averaged``: mixtures whose clusters were averaged instead.

    ``share`` of the parameters of the model that stayed; ``uniform``: every mixture kept equally many, so that the
    config could be changed and a saved folder loads again.
    """

    kept: dict[str, list[int]]
    clusters: dict[str, list[list[int]]]
    threshold: float
    share: float
    experts_share: float
    uniform: bool
    averaged: list[str] = field(default_factory=list)

    def within(self, density: float) -> float:
        """The density of a second stage inside what stayed, so that both together keep ``density`` of all parameters.

        What the second stage leaves dense (embeddings, routers) counts as pruned alike; where it matters, count it out.

        Raises:
            RecipeError: less than ``density`` is left already.
        """
        if not density <= self.share:
            raise RecipeError(f"experts alone left a share of {self.share:.4f}, which is below the density {density:g}")
        return density / self.share


@torch.no_grad()
def drop_experts(
    model: nn.Module,
    remove: float,
    *,
    counts: Mapping[str, Tensor] | None = None,
    router: float = 1.0,
    together: float = 0.0,
    average_below: int = 2,
    even: bool = False,
) -> Dropped:
    """Drop a share of all experts of a model in memory; routers shrink with them, no pass over data is made.

    Clusters are found over all mixtures together, so that those with more alike experts lose more. Of each cluster the
    member closest to its mean stays, with its own router row; a mixture left with at most ``average_below`` clusters
    keeps their means, of weights and router rows, instead. Routing is otherwise as before.

    Args:
        model: a transformers model with fused experts (Mixtral, Qwen-MoE and others).
        remove: share of all experts, rounded down, in [0, 1).
        counts: of ``coactivation``, for ``together``.
        router: weight of the distance of router rows.
        together: weight of the co-activation.
        average_below: see above; 0 never averages.
        even: the same number from every mixture; only then a saved folder loads again with ``from_pretrained``.

    Differences:
        The published code finds one threshold by bisection and may miss the count; here the merges stop at it. All
        pairs of a cluster are checked, not only those with the last member.

    Raises:
        OpenworkError: whatever cannot be done; the model is then untouched.
    """
    if not 0 <= remove < 1:
        raise RecipeError(f"drop_experts: remove must be a share in [0, 1), got {remove}")
    mixtures = find_experts(model)
    if together and counts is None:
        raise RecipeError("drop_experts: together= needs counts=, from openwork.llm.experts.coactivation")
    distances = {
        n: behaviour_distance(m.rows, counts[n] if counts else None, router, together) for n, m in mixtures.items()
    }
    floor = {n: m.active for n, m in mixtures.items()}
    total = sum(m.count for m in mixtures.values())
    if even:
        parts = [clusters_of({n: d}, int(remove * len(d) + 1e-9), floor) for n, d in distances.items()]
        groups = {n: g for part, _ in parts for n, g in part.items()}
        threshold = max(t for _, t in parts)
    else:
        groups, threshold = clusters_of(distances, int(remove * total + 1e-9), floor)
    before = sum(p.numel() for p in model.parameters())
    kept, averaged = {}, []
    for name, mixture in mixtures.items():
        some = groups[name]
        if len(some) < mixture.count and len(some) <= average_below:
            averaged.append(name)
            for part in (*mixture.weights.parameters(), *mixture.router.parameters()):
                for members in some:
                    part[members[0]] = part[members].double().mean(0).to(part.dtype)
            kept[name] = [members[0] for members in some]
        else:
            flat = mixture.flat
            kept[name] = sorted(representative(flat, members) for members in some)
        keep_experts(mixture, kept[name])
    sizes = {len(k) for k in kept.values()}
    if len(sizes) == 1:
        _resize(model, total // len(mixtures), sizes.pop())
    after = sum(p.numel() for p in model.parameters())
    left = sum(map(len, kept.values())) / total
    uniform = len({len(k) for k in kept.values()}) == 1
    return Dropped(kept, groups, threshold, after / before, left, uniform, averaged)


@torch.no_grad()
def keep_experts(mixture: Experts, kept: Sequence[int]) -> None:
    """Cut the fused weights and the router to some experts, in this order.

    Raises:
        RecipeError: fewer than a token is sent to, or a number that does not exist.
    """
    if len(set(kept)) != len(kept) or not all(0 <= k < mixture.count for k in kept) or len(kept) < mixture.active:
        raise RecipeError(
            f"{mixture.name}: must keep at least {mixture.active} different experts of {mixture.count}, got "
            f"{list(kept)}"
        )
    if len(kept) == mixture.count:
        return
    old, index = mixture.count, torch.as_tensor(kept)
    for module in (mixture.weights, mixture.router):
        for leaf, param in list(module._parameters.items()):
            if param is not None and len(param) == old:
                module._parameters[leaf] = nn.Parameter(param[index.to(param.device)], param.requires_grad)
        for leaf, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.ndim and len(buffer) == old:
                module._buffers[leaf] = buffer[index.to(buffer.device)]
        for attribute in SIZES:
            if getattr(module, attribute, None) == old:
                setattr(module, attribute, len(kept))


def _resize(model: nn.Module, old: int, new: int) -> None:
    """The number of experts in the config, and in the model that computes the balance of its routers."""
    for owner in (model, getattr(model, "config", None)):
        for attribute in SIZES:
            if owner is not None and getattr(owner, attribute, None) == old:
                setattr(owner, attribute, new)
