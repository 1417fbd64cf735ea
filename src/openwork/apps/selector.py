"""The gates of Sequential Attention: a softmax over what is not yet selected (arXiv 2209.14881, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openwork.errors import DivergedError, RecipeError


class SequentialSelector(nn.Module):
    """Picks ``k`` of ``n`` candidates in one training run: one gate a candidate, ``per_step`` picks a phase.

    The first ``start`` of the run is a warm-up with all gates 1; the rest is split evenly into ``k / per_step`` phases.
    In a phase the gates of the selected are 1, the others are ``exp(L_i) / sum_{j not selected} exp(L_j)``. At the
    *end* of a phase the largest logits ``L`` outside the selection are picked, lowest index first in a tie, and all
    logits are drawn anew from ``N(0, 1e-5)``.

    Multiply the inputs (channels, heads, ...) by `gates`, train the logits with the model, and call `advance` after
    every step.

    Args:
        n: candidates.
        k: how many to pick.
        per_step: picks a phase; must divide ``k``.
        start: the warm-up's share of the run, in [0, 1).
        seed: of the logits.

    Raises:
        RecipeError: an argument is out of range; in `advance`, a phase was skipped.
        DivergedError: in `advance`, a logit became NaN or infinite.

    Examples:
        >>> select = SequentialSelector(4, 2)
        >>> select.gates(0.0).tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> with torch.no_grad():
        ...     _ = select.logits.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
        >>> select.advance(0.55)
        (1,)
        >>> select.gates(0.6)[1].item(), select.order
        (1.0, (1,))
    """

    selected: Tensor
    picks: Tensor

    def __init__(self, n: int, k: int, per_step: int = 1, start: float = 0.1, seed: int = 0):
        super().__init__()
        for name, value in (("n", n), ("k", k), ("per_step", per_step)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"SequentialSelector: {name} must be a positive integer, got {value!r}")
        if k > n:
            raise RecipeError(f"SequentialSelector: k must be at most the {n} candidates, got {k}")
        if k % per_step:
            raise RecipeError(f"SequentialSelector: per_step must divide k = {k}, got {per_step}")
        if not 0 <= start < 1:
            raise RecipeError(f"SequentialSelector: start must be a share in [0, 1), got {start}")
        self.n, self.k, self.per_step, self.start = n, k, per_step, float(start)
        self.generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.empty(n))
        self.register_buffer("selected", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("picks", torch.full((k,), -1, dtype=torch.int64))
        self._draw()

    @property
    def phases(self) -> int:
        return self.k // self.per_step

    @property
    def order(self) -> tuple[int, ...]:
        """The candidates picked so far, first pick first."""
        return tuple(i for i in self.picks.tolist() if i >= 0)

    def attention(self) -> Tensor:
        """``(n,)`` float32: 1 for the selected, the masked softmax for the others, which sum to 1."""
        if len(self.order) == self.n:
            return torch.ones_like(self.logits)
        masked = self.logits.masked_fill(self.selected, -torch.inf)
        return torch.where(self.selected, 1.0, torch.softmax(masked, 0))

    def gates(self, progress: float) -> Tensor:
        """``(n,)`` float32 at a share of the run in [0, 1]; in the warm-up ones, with zero gradient for the logits.

        After the last pick only the selected are open.
        """
        if progress < self.start:
            return torch.ones_like(self.logits) + 0 * self.logits
        if len(self.order) == self.k:
            return self.selected.to(self.logits.dtype) + 0 * self.logits
        return self.attention()

    def forward(self, x: Tensor, progress: float = 1.0) -> Tensor:
        """``x`` with its last dimension of ``n`` multiplied by the gates."""
        return x * self.gates(progress).to(x.dtype)

    def due(self, progress: float) -> int:
        """How many candidates are selected once so much of the run is over."""
        done = (progress - self.start) / (1 - self.start) * self.phases
        return self.per_step * max(0, min(self.phases, int(done + 1e-6)))

    @torch.no_grad()
    def advance(self, progress: float) -> tuple[int, ...]:
        """Pick what the phases that ended by ``progress`` owe; call it after every training step."""
        owed = self.due(progress) - len(self.order)
        if owed <= 0:
            return ()
        if owed > self.per_step:
            raise RecipeError(
                f"SequentialSelector: advance must be called in every phase, got {owed // self.per_step} phases at "
                f"once at progress {progress:g}; train longer or call it after every step"
            )
        if not bool(self.logits.isfinite().all()):
            raise DivergedError("SequentialSelector: a logit became NaN or infinite; lower the learning rate")
        masked = self.logits.masked_fill(self.selected, -torch.inf)
        new = masked.argsort(descending=True, stable=True)[: self.per_step]
        self.picks[len(self.order) : len(self.order) + self.per_step] = new
        self.selected[new] = True
        self._draw()
        return tuple(new.tolist())

    @torch.no_grad()
    def _draw(self) -> None:
        self.logits.copy_(torch.randn(self.n, generator=self.generator) * 1e-5)
