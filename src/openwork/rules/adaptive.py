"""SAP: every round prunes as much as the sparsity of the weights says they can spare (Diao et al., ICLR 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from openwork.core.now import Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.protocols import Rule
from openwork.core.select import count_kept, keep_top
from openwork.core.shares import apportioned
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.metrics.pq import entries_needed, pq_index

Scope = Literal["neuron", "layer", "global"]


def shared_out(want: Tensor, need: int, most: Tensor) -> Tensor:
    """``need`` in whole numbers, in proportion to ``want``, at most ``most`` each; the largest remainders first.

    Where all of ``want`` is zero or used up, the rest goes in proportion to what is left of ``most``.
    """
    exact, full = torch.zeros(most.shape, dtype=torch.float64), most.double().cpu()
    while (left := min(need, int(full.sum())) - float(exact.sum())) > 1e-6:
        room = full - exact
        weight = torch.where(room > 1e-9, want.double().cpu(), torch.zeros(()).double())
        weight = weight if float(weight.sum()) > 0 else room
        exact += torch.minimum(weight * (left / weight.sum()), room)
    return torch.tensor(apportioned(exact.tolist(), need, most=most.tolist()), device=most.device)


@dataclass(frozen=True)
class AdaptivePruning(Rule):
    """Prune the smallest of the living, ``floor(d min(gamma (1 - r / d), beta))`` of the ``d`` in every region.

    ``r = d (1 + eta)^(-q/(q-p)) (1 - I)^(pq/(q-p))`` bounds what must stay, I the PQ index of the living. Regions are
    rows (``neuron``), tensors (``layer``) or the model (``global``). No round goes below the density of the phase; in
    the phase named ``sparse`` it is met exactly, what is missing or too much being shared out in proportion to what
    the regions can spare.
    """

    scope: Scope = "layer"
    p: float = 0.5
    q: float = 1.0
    eta: float = 0.0
    gamma: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        if self.scope not in ("neuron", "layer", "global"):
            raise RecipeError(f"AdaptivePruning: scope must be 'neuron', 'layer' or 'global', got {self.scope!r}")
        entries_needed(torch.zeros(()), 1, self.p, self.q, self.eta)
        if not self.gamma > 0 or not 0 < self.beta < 1:
            raise RecipeError(
                f"AdaptivePruning: gamma must be positive and beta in (0, 1), got {self.gamma} and {self.beta}"
            )

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        parts = now.parts
        scores = torch.cat([Magnitude()(part, now).double().cpu() for part in parts.values()])
        alive = torch.cat([now.units[n].cpu() for n in parts])
        regions = self._regions(now)
        count = int(regions.max()) + 1
        living = torch.bincount(regions[alive], minlength=count)
        index = self._indices(scores, alive, regions, count)
        need = entries_needed(index, living, self.p, self.q, self.eta).ceil()
        ratio = (self.gamma * (1 - need / living.clamp_min(1))).clamp(0.0, self.beta)
        spare = (living * ratio).floor().long()
        budget = int(alive.sum()) - count_kept(phase.share, len(alive))
        if phase.name == "sparse" or int(spare.sum()) > budget:
            spare = shared_out(
                spare, budget, (living - 1).clamp_min(0) if budget <= int(alive.sum()) - count else living
            )
        kept = keep_top(scores.masked_fill(~alive, -math.inf), living - spare, regions)
        units = dict(zip(parts, kept.split([p.n_units for p in parts.values()]), strict=True))
        told = {"pq_index": float((index * living).sum() / living.sum()), "pruned": int(spare.sum())}
        return Update({n: u.to(now.units[n].device) for n, u in units.items()}, state=state, log={"sap": told})

    def _indices(self, scores: Tensor, alive: Tensor, regions: Tensor, count: int) -> Tensor:
        """The PQ index of the living in every region, ``[count]`` float64."""
        order = regions[alive].argsort(stable=True)
        sizes = torch.bincount(regions[alive], minlength=count).tolist()
        pieces = scores[alive][order].split(sizes)
        return torch.stack([pq_index(piece, p=self.p, q=self.q) for piece in pieces])

    def _regions(self, now: Now) -> Tensor:
        """The region of every unit, all tensors behind one another."""
        found, first = [], 0
        for name, part in now.parts.items():
            own = self._rows(name, part) if self.scope == "neuron" else torch.zeros(part.n_units, dtype=torch.long)
            found.append(own + first)
            first = first if self.scope == "global" else int(found[-1].max()) + 1
        return torch.cat(found)

    @staticmethod
    def _rows(name: str, part: Partition) -> Tensor:
        block, view = getattr(part, "block", None), getattr(part, "view", None)
        if block != (1, 1) or view is None:
            raise RecipeError(f"{name}: rows of neurons are known for single weights only; take scope='layer'")
        return torch.arange(part.n_units) // view.folded[2]
