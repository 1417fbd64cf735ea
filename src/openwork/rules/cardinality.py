"""Choose exactly k of n so that a quadratic form is smallest: ``min x^T Q x``, x in {0, 1}^n, ``sum x = k``.

Q is ``[n, n]`` float64 and symmetric. Every solver gets a feasible start and answers with a bool ``[n]`` of k ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from openwork.errors import RecipeError

MOST = 2_000_000
"""Choices that ``Exhaustive`` looks at, at most."""


class Solver(Protocol):
    """One way to solve it."""

    def __call__(self, q: Tensor, start: Tensor, rng: torch.Generator) -> Tensor: ...


def energy(q: Tensor, x: Tensor) -> float:
    """``x^T Q x`` of a bool vector."""
    return float(q[x][:, x].sum())


def penalised(q: Tensor, k: int, weight: float) -> tuple[Tensor, float]:
    """The same problem without its constraint: ``Q + weight (1 1^T - 2 k I)`` and the constant ``weight k^2``.

    For a large enough weight the minimiser over all x has k ones: a form for solvers of unconstrained problems.
    """
    n = len(q)
    return q + weight * (1 - 2 * k * torch.eye(n, dtype=q.dtype)), weight * k * k


@dataclass(frozen=True)
class Exhaustive:
    """Look at every choice: for blocks of about twenty, and to test the others against."""

    def __call__(self, q: Tensor, start: Tensor, rng: torch.Generator) -> Tensor:
        n, k = len(q), int(start.sum())
        if comb(n, k) > MOST:
            count = f"{comb(n, k):,}"
            raise RecipeError(f"Exhaustive: {n} choose {k} is {count} choices, more than {MOST:,}; use Annealing")
        every = torch.tensor(list(combinations(range(n), k)), dtype=torch.int64).reshape(comb(n, k), k)
        found = start
        least = float("inf")
        for some in every.split(100_000):
            x = torch.zeros(len(some), n, dtype=q.dtype).scatter_(1, some, 1)
            values = ((x @ q) * x).sum(1)
            at = int(values.argmin())
            if float(values[at]) < least:
                least, found = float(values[at]), x[at].bool()
        return found


@dataclass(frozen=True)
class BestSwap:
    """Exchange the pair that lowers the value most, until none does: a local minimum near the start."""

    def __call__(self, q: Tensor, start: Tensor, rng: torch.Generator) -> Tensor:
        x = start.clone()
        slope, diagonal = q @ x.to(q.dtype), q.diagonal()
        floor = -1e-12 * float(q.abs().max()) if q.numel() else 0.0
        for _ in range(4 * len(x)):
            ones, zeros = x.nonzero().flatten(), (~x).nonzero().flatten()
            if not len(ones) or not len(zeros):
                break
            leave, join = (diagonal - 2 * slope)[ones], (diagonal + 2 * slope)[zeros]
            change = leave[:, None] + join[None] - 2 * q[ones][:, zeros]
            at = int(change.argmin())
            if float(change.flatten()[at]) >= floor:
                break
            out, into = ones[at // len(zeros)], zeros[at % len(zeros)]
            x[out], x[into] = False, True
            slope += q[:, into] - q[:, out]
        return x


@dataclass(frozen=True)
class Annealing:
    """Simulated annealing at a fixed number of ones, from ``restarts`` states at once; the best one is descended.

    A move exchanges variable i with a random one of the opposite value and is accepted when it lowers the value, or
    with probability ``exp(-beta change)``; one sweep over the variables at each beta from ``low``, times ``factor``,
    to ``high``. Q is scaled so that its non-zero entries have the mean size 1. It stops at a temperature that changes
    no value. The first state is the given one, the others are random.
    """

    restarts: int = 10
    low: float = 1e-3
    high: float = 100.0
    factor: float = 1.1

    def __post_init__(self) -> None:
        if self.restarts < 1 or not 0 < self.low <= self.high or not self.factor > 1:
            raise RecipeError(
                f"Annealing: restarts must be at least 1, 0 < low <= high and factor above 1, got {self.restarts}, "
                f"{self.low}, {self.high} and {self.factor}"
            )

    def __call__(self, q: Tensor, start: Tensor, rng: torch.Generator) -> Tensor:
        n, k = len(q), int(start.sum())
        size = q.abs()
        if k in (0, n) or not bool(size.any()):
            return start
        scaled = (q / size[size > 0].mean()).numpy()
        draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
        state = _States(scaled, start.numpy(), self.restarts, draw)
        beta = self.low
        while beta <= self.high and state.sweep(beta):
            beta *= self.factor
        return BestSwap()(q, torch.from_numpy(state.best()), rng)


class _States:
    """Several states side by side: ``x`` [states, n], their ones and zeros as lists, and ``slope = x Q``."""

    def __init__(self, q: np.ndarray, start: np.ndarray, states: int, draw: np.random.Generator):
        n = len(q)
        self.q, self.diagonal, self.k, self.draw = q, q.diagonal(), int(start.sum()), draw
        self.rows = np.arange(states)
        # the first k places of a row of ``member`` are its ones; ``place`` is the inverse permutation
        self.member = draw.random((states, n)).argsort(1)
        self.member[0] = np.argsort(~start, kind="stable")
        self.place = self.member.argsort(1)
        self.slope = (self.place < self.k).astype(q.dtype) @ q

    def sweep(self, beta: float) -> bool:
        """One attempt per variable and state; False when no state's value changed."""
        n, k, rows = len(self.q), self.k, self.rows
        order = self.draw.permutation(n)
        chance = self.draw.random((n, len(rows)))
        limit = -np.log(self.draw.random((n, len(rows)))) / beta
        changed = False
        for i, u, most in zip(order, chance, limit, strict=True):
            here = self.place[:, i]
            one = here < k
            other = np.where(one, k + (u * (n - k)).astype(np.int64), (u * k).astype(np.int64))
            j = self.member[rows, other]
            out, into = np.where(one, i, j), np.where(one, j, i)
            change = (
                self.diagonal[out] + self.diagonal[into] - 2 * self.q[out, into]
                + 2 * (self.slope[rows, into] - self.slope[rows, out])
            )  # fmt: skip
            accepted = (change < most).nonzero()[0]
            if len(accepted):
                r, a, b = accepted, out[accepted], into[accepted]
                self.slope[r] += self.q[b] - self.q[a]
                self.member[r, here[r]], self.member[r, other[r]] = j[r], i
                self.place[r, j[r]], self.place[r, i] = here[r], other[r]
                changed = changed or bool((change[r] != 0).any())
        return changed

    def best(self) -> np.ndarray:
        x = self.place < self.k
        values = ((x @ self.q) * x).sum(1)
        return x[int(values.argmin())]
