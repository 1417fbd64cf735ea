"""Optimal brain surgery with a block-diagonal empirical Fisher (WoodFisher)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openwork.allocation import Global
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Allocation, Rule
from openwork.core.select import keep_top
from openwork.core.stat import Stat
from openwork.errors import RecipeError
from openwork.stats import SampleGradients
from openwork.stats.samples import refuse_too_large


class InverseFisher:
    """``F^-1 = (damp I + G^T G / N)^-1`` of one block, from ``rows`` ``G`` [N, c]; float64.

    With more entries than gradients (c > N) Woodbury's identity: ``L L^T = N damp I + G G^T``, ``half = L^-1 G`` and
    ``F^-1 v = (v - half^T half v) / damp``, in time O(N^2 c + N^3) and memory O(N c); otherwise the matrix itself. It
    is the matrix that the paper's N rank-one updates arrive at.
    """

    def __init__(self, rows: Tensor, damp: float):
        g, self.damp = rows.double(), damp
        n, c = g.shape
        self.half = self.matrix = None
        if c > n:
            inner = g @ g.T
            inner.diagonal().add_(n * damp)
            self.half = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), g, upper=False)
        else:
            fisher = g.T @ g / n
            fisher.diagonal().add_(damp)
            self.matrix = torch.cholesky_inverse(torch.linalg.cholesky(fisher))

    @property
    def diagonal(self) -> Tensor:
        """``[c]``."""
        if self.matrix is not None:
            return self.matrix.diagonal()
        assert self.half is not None
        return (1 - self.half.square().sum(0)) / self.damp

    def times(self, v: Tensor) -> Tensor:
        """``F^-1 v`` for ``v`` of shape [c] or [c, k]."""
        if self.matrix is not None:
            return self.matrix @ v
        assert self.half is not None
        return (v - self.half.T @ (self.half @ v)) / self.damp

    def within(self, where: Tensor) -> Tensor:
        """The square part of ``F^-1`` at the entries of a bool mask ``[c]``."""
        if self.matrix is not None:
            return self.matrix[where][:, where]
        assert self.half is not None
        part = self.half[:, where]
        return (torch.eye(part.shape[1], dtype=part.dtype, device=part.device) - part.T @ part) / self.damp


@dataclass(frozen=True)
class BrainSurgeon(Rule):
    """Prune the weights whose removal costs least, ``w_q^2 / (2 [F^-1]_qq)``, and correct the survivors.

    Blocks are ``block`` consecutive entries of a tensor in memory order. ``correct`` applies
    ``delta = F^-1 v``: with ``joint=False`` ``v_q = -w_q / [F^-1]_qq`` on the removed entries (single-weight updates
    added up, eq. 11), with ``joint=True`` ``v_Q = -[F^-1]_QQ^-1 w_Q``, the exact minimiser when all are removed.

    Raises:
        RecipeError: damp or block out of range, units of several weights, or, before any gradient is computed, more
            memory than is free.
    """

    gradients: SampleGradients = field(default_factory=SampleGradients)
    allocation: Allocation = field(default_factory=Global)
    block: int = 2000
    damp: float = 1e-5
    correct: bool = True
    joint: bool = False

    def __post_init__(self) -> None:
        if not self.damp > 0:
            raise RecipeError(f"BrainSurgeon: damp must be positive, got {self.damp}; the Fisher matrix is singular")
        if self.block < 1:
            raise RecipeError(f"BrainSurgeon: block must be at least 1 entry, got {self.block}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return frozenset({self.gradients})

    def init(self, now: Now) -> Any:
        for name, part in now.parts.items():
            if name not in now.weights or part.n_units != now.weights[name].numel():
                raise RecipeError(f"{name}: BrainSurgeon removes single weights; use Element or an N:M structure")
        self._refuse_too_large(now)

    def _refuse_too_large(self, now: Now) -> None:
        """The gradients are in memory together, the blocks one after another."""
        n, c = self.gradients.samples, min(self.block, max(w.numel() for w in now.weights.values()))
        entries = n * c + 3 * min(n, c) * c + (3 * c * c if self.joint else 0)
        beside = f" and the inverse of a block of {c:,}"
        refuse_too_large("BrainSurgeon", n, now.weights, beside, 8 * entries, ", smaller blocks")

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        masks = now.masks
        rows = now[self.gradients](now.weights, masks)
        scores = {n: self._cost(now.weights[n].flatten().double() * masks[n].flatten(), rows[n]) for n in now.parts}
        # entry costs are in memory order, units in the order of the partition's view
        pooled = {n: part.pool({n: scores[n].reshape(now.weights[n].shape)}) for n, part in now.parts.items()}
        for name, alive in now.units.items():
            pooled[name] = pooled[name].masked_fill(~alive, float("-inf"))
        counts = self.allocation(now, pooled, phase.share)
        units = {n: keep_top(pooled[n], counts[n], now.parts[n].scope()) for n in pooled}
        edits: dict[str, Tensor] = {}
        for name, part in now.parts.items() if self.correct else ():
            kept = part.spread(units[name])[name]
            gone = masks[name] & ~kept
            if bool(gone.any()):
                moved = self._corrected(now.weights[name].flatten().double(), gone.flatten(), rows[name])
                edits[name] = (moved.reshape(kept.shape) * kept).to(now.weights[name].dtype)
        return Update(units, edits, state, log={"corrected": len(edits)})

    def _cost(self, weight: Tensor, rows: Tensor) -> Tensor:
        found = torch.empty_like(weight)
        for at in range(0, len(weight), self.block):
            cut = slice(at, at + self.block)
            found[cut] = weight[cut].square() / (2 * InverseFisher(rows[:, cut], self.damp).diagonal)
        return found

    def _corrected(self, weight: Tensor, gone: Tensor, rows: Tensor) -> Tensor:
        for at in range(0, len(weight), self.block):
            cut = slice(at, at + self.block)
            where = gone[cut]
            if not bool(where.any()):
                continue
            inverse = InverseFisher(rows[:, cut], self.damp)
            v = torch.zeros_like(weight[cut])
            if self.joint:
                v[where] = -torch.linalg.solve(inverse.within(where), weight[cut][where])
            else:
                v[where] = -weight[cut][where] / inverse.diagonal[where]
            weight[cut] += inverse.times(v)
        return weight
