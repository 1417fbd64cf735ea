"""iCBS: re-decide a small block of weights at a time by a quadratic model of the loss, at fixed density.

Around the present weights w (pruned ones zero) with ``D = w - w0``, mean gradient G and ``H = 1/S sum g g^T`` over
single inputs, the choice x (1 = prune) of a block gives ``w' = w0 (1 - x)`` and changes the model by
``const + x^T Q x``, ``Q = (w0 w0^T) * H / 2 + diag(w0 * (H D - c G))``, ``const = D^T H D / 2 - c D^T G``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log10
from typing import Any, Literal

import torch
from torch import Tensor

from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Criterion, Rule
from openwork.core.select import count_kept, keep_top
from openwork.core.shares import apportioned
from openwork.core.stat import Stat
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.rules.cardinality import Annealing, Solver, energy
from openwork.stats import LayerGradients
from openwork.structure.tiles import Tiles


def quadratic(
    w0: Tensor, w: Tensor, grad: Tensor, hessian: Tensor, slope: float = 1.0, ridge: float = 0.0
) -> tuple[Tensor, float]:
    """(Q ``[n, n]``, const): the change of the loss when the entries with x = 1 are pruned and the others hold ``w0``.

    Args:
        w0: ``[n]`` original values.
        w: ``[n]`` present values, 0 or w0.
        grad: ``[n]``.
        hessian: ``[n, n]``.
        slope: c, the weight of the first-order term.
        ridge: of ``ridge |w' - w|^2``, which is added.
    """
    moved = w - w0
    linear = w0 * (hessian @ moved) - slope * w0 * grad + ridge * w0 * (2 * moved + w0)
    q = 0.5 * torch.outer(w0, w0) * hessian + torch.diag(linear)
    const = 0.5 * moved @ hessian @ moved - slope * moved @ grad + ridge * moved @ moved
    return q, float(const)


@dataclass(frozen=True)
class BlockDescent(Rule):
    """Start from a criterion's mask and improve it, ``steps`` blocks of ``block`` weights, each of one tensor.

    Tensors are visited in proportion to the logarithm of their size, in random order, anew in each of ``epochs``. A
    block takes ``exchange`` of its weights from the pruned ones of the largest score and the rest from the kept ones of
    the smallest; the ``solver`` chooses as many to prune as were. Its answer is applied untested. For the whole run the
    lowest ``fix_pruned`` of the pruned and the highest ``fix_kept`` of the kept weights stay as the start has them; a
    block's weights are not chosen again before they leave a queue of ``tabu`` of the free ones, unless a pool would
    run dry. Kept weights hold their original values.

    ``pick`` is the score of the choice: ``|w0 g|`` at the present weights, ``|w0|``, or at random. ``per_row`` ranks
    the start inside output rows; the count of the tensor is exact either way.
    """

    start: Criterion = field(default_factory=Magnitude)
    gradients: LayerGradients = field(default_factory=LayerGradients)
    solver: Solver = field(default_factory=Annealing)
    steps: int = 300
    epochs: int = 1
    block: int = 256
    exchange: float = 0.5
    pick: Literal["gradient", "magnitude", "random"] = "gradient"
    fix_pruned: float = 0.42
    fix_kept: float = 0.35
    tabu: float = 0.4
    slope: float = 0.75
    ridge: float = 1e-3
    per_row: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.epochs < 1 or self.block < 2:
            raise RecipeError(
                f"BlockDescent: steps must not be negative, epochs at least 1 and block at least 2, got {self.steps}, "
                f"{self.epochs} and {self.block}"
            )
        shares = {n: getattr(self, n) for n in ("exchange", "fix_pruned", "fix_kept", "tabu")}
        wrong = {n: v for n, v in shares.items() if not 0 <= v < 1}
        if wrong or self.exchange == 0:
            raise RecipeError(f"BlockDescent: shares must lie in [0, 1) and exchange above 0, got {wrong or shares}")
        if not (self.slope >= 0 and self.ridge >= 0):
            raise RecipeError(f"BlockDescent: slope and ridge must not be negative, got {self.slope} and {self.ridge}")
        if self.pick not in ("gradient", "magnitude", "random"):
            raise RecipeError(f"BlockDescent: pick must be 'gradient', 'magnitude' or 'random', got {self.pick!r}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return self.start.needs | {self.gradients}

    def init(self, now: Now) -> Any:
        for name, part in now.parts.items():
            if not isinstance(part, Tiles) or part.block != (1, 1) or part.run is not None:
                raise RecipeError(f"{name}: BlockDescent exchanges single weights over a tensor; use Element()")

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        layers = {n: _Layer(part, now, self._scores(n, part, now), phase.share, self) for n, part in now.parts.items()}
        weights = {n: layer.masked() for n, layer in layers.items()}
        gradients = now[self.gradients]
        told = {"steps": 0, "moved": 0, "predicted": 0.0}
        for epoch in range(self.epochs):
            for i, name in enumerate(self._visits(layers, now.rng)):
                rows = gradients(weights, name, epoch * self.steps + i)
                found = layers[name].step(rows, now.rng)
                if found is not None:
                    weights[name] = layers[name].masked()
                    told = {k: told[k] + v for k, v in found.items()}
        return Update({n: layer.kept for n, layer in layers.items()}, state=state, log={"descent": told})

    def _scores(self, name: str, part: Any, now: Now) -> Tensor:
        scores = self.start(part, now).float().masked_fill(~now.units[name], float("-inf"))
        if not self.per_row:
            return scores
        rows = scores.reshape(-1, part.view.folded[2])
        return -rows.argsort(dim=1, descending=True, stable=True).argsort(dim=1).flatten().to(scores.dtype)

    def _visits(self, layers: Mapping[str, _Layer], rng: torch.Generator) -> list[str]:
        """Which tensor each step is about: shares by the logarithm of the size, at least one each, shuffled."""
        weight = {n: log10(max(10, len(layer.kept))) for n, layer in layers.items()}
        total = sum(weight.values())
        shares = apportioned([self.steps * w / total for w in weight.values()], self.steps)
        counts = dict(zip(weight, shares, strict=True))
        for n in [n for n, c in counts.items() if c == 0]:
            most = max(counts, key=lambda n: counts[n])
            if counts[most] > 1:
                counts[most], counts[n] = counts[most] - 1, 1
        every = [n for n, c in counts.items() for _ in range(c)]
        return [every[i] for i in torch.randperm(len(every), generator=rng).tolist()]


class _Layer:
    """One tensor: original values, what is kept, what may change, and the queue of recent choices."""

    def __init__(self, part: Any, now: Now, scores: Tensor, share: float, options: BlockDescent):
        self.part, self.options = part, options
        self.weight = now.weights[part.member]
        device, n = self.weight.device, part.n_units
        self.w0 = part.pool({part.member: self.weight.detach()}).double().cpu()
        self.order = part.pool({part.member: torch.arange(n, device=device).reshape(self.weight.shape)})
        keep = count_kept(share, n)
        self.kept = keep_top(scores, keep)
        alive = now.units[part.member]
        stay = torch.zeros(n, dtype=torch.bool, device=device)
        stay[self._extreme(scores, ~self.kept & alive, options.fix_pruned, lowest=True)] = True
        stay[self._extreme(scores, self.kept, options.fix_kept, lowest=False)] = True
        self.free = ~stay & (alive | self.kept)
        self.recent = torch.empty(0, dtype=torch.int64, device=device)
        self.longest = int(options.tabu * int(self.free.sum()))

    @staticmethod
    def _extreme(scores: Tensor, among: Tensor, share: float, lowest: bool) -> Tensor:
        where = among.nonzero().flatten()
        order = scores[where].argsort(descending=not lowest, stable=True)
        return where[order[: int(share * len(where))]]

    def masked(self) -> Tensor:
        """The present weights."""
        return self.weight.detach() * self.part.spread(self.kept)[self.part.member]

    def step(self, rows: Tensor, rng: torch.Generator) -> dict[str, float] | None:
        """Decide one block anew; None where nothing can move."""
        grads = rows[:, self.order]
        options = self.options
        scores = self._score(grads.mean(0), rng)
        out = self._pool(~self.kept, scores, int(options.exchange * options.block), largest=True)
        into = self._pool(self.kept, scores, options.block - len(out), largest=False)
        if not len(out) or not len(into):
            return None
        block = torch.cat([out, into])
        self.recent = torch.cat([self.recent, block])[max(0, len(self.recent) + len(block) - self.longest) :]
        part = grads[:, block].double().cpu()
        pruned = ~self.kept[block].cpu()
        w0 = self.w0[block.cpu()]
        hessian = part.T @ part / len(part)
        q, const = quadratic(w0, w0 * ~pruned, part.mean(0), hessian, options.slope, options.ridge)
        q = torch.where(q.abs() <= 1e-12 * q.abs().max(), torch.zeros_like(q), q)
        chosen = options.solver(q, pruned, rng)
        self.kept[block] = ~chosen.to(self.kept.device)
        return {"steps": 1, "moved": int((chosen & ~pruned).sum()), "predicted": energy(q, chosen) + const}

    def _score(self, grad: Tensor, rng: torch.Generator) -> Tensor:
        if self.options.pick == "random":
            return torch.rand(len(grad), generator=rng).to(grad.device)
        size = self.w0.abs().to(grad.device, grad.dtype)
        return size * grad.abs() if self.options.pick == "gradient" else size

    def _pool(self, among: Tensor, scores: Tensor, count: int, largest: bool) -> Tensor:
        """Up to ``count`` free entries; those chosen lately are left out as long as there are enough others."""
        pool = among & self.free
        fresh = pool.clone()
        fresh[self.recent] = False
        pool = fresh if int(fresh.sum()) >= count else pool
        where = pool.nonzero().flatten()
        return where[scores[where].argsort(descending=largest, stable=True)[:count]]
