"""Random problems with groups, and the exact best subset, for the tests of this room."""

from itertools import combinations

import torch

from openwork.inverse import LeastSquares, Quadratic


def regression(seed, rows=60, groups=8, size=3, active=3, noise=0.1, outputs=()):
    """The loss, labels ``(n,)``, the planted groups, and ``X`` and ``y``."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, groups * size, generator=rng, dtype=torch.float64)
    labels = torch.arange(groups).repeat_interleave(size)
    chosen = torch.randperm(groups, generator=rng)[:active]
    beta = torch.randn(groups * size, *outputs, generator=rng, dtype=torch.float64)
    beta[~torch.isin(labels, chosen)] = 0
    y = x @ beta
    y = y + noise * torch.randn(y.shape, generator=rng, dtype=torch.float64)
    return LeastSquares(x, y), labels, set(chosen.tolist()), x, y


def quadratic(seed, groups=3, size=2):
    """A strongly convex quadratic and its labels."""
    rng = torch.Generator().manual_seed(seed)
    n = groups * size
    root = torch.randn(n, n, generator=rng, dtype=torch.float64)
    b = torch.randn(n, generator=rng, dtype=torch.float64)
    return Quadratic(root @ root.T / n + 0.5 * torch.eye(n), b), torch.arange(groups).repeat_interleave(size)


def brute(objective, labels, k):
    """The lowest loss of any ``k`` groups, and these groups."""
    sets = list(combinations(range(int(labels.max()) + 1), k))
    losses = [objective.value(objective.refit(torch.isin(labels, torch.tensor(s)))) for s in sets]
    best = min(range(len(sets)), key=losses.__getitem__)
    return losses[best], set(sets[best])
