"""Solvers of the quadratic with a fixed number of ones, against every choice."""

import pytest
import torch

from openwork.errors import RecipeError
from openwork.rules.cardinality import Annealing, BestSwap, Exhaustive, energy, penalised

F64 = torch.float64


def problem(seed, n=14, k=7):
    """Symmetric, indefinite, with a diagonal as large as the rest of a row."""
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=rng, dtype=F64)
    q = a + a.T + torch.diag(torch.randn(n, generator=rng, dtype=F64) * n**0.5)
    start = torch.zeros(n, dtype=torch.bool)
    start[torch.randperm(n, generator=rng)[:k]] = True
    return q, start


def rng():
    return torch.Generator().manual_seed(0)


def test_every_choice_is_looked_at():
    q, start = problem(0, n=8, k=3)
    best = Exhaustive()(q, start, rng())
    every = [x for x in torch.cartesian_prod(*[torch.tensor([False, True])] * 8) if int(x.sum()) == 3]
    assert len(every) == 56
    assert energy(q, best) == pytest.approx(min(energy(q, x) for x in every))
    assert int(best.sum()) == 3


def test_annealing_finds_the_optimum_and_swaps_come_close():
    hits = near = 0
    for seed in range(20):
        q, start = problem(seed)
        best = energy(q, Exhaustive()(q, start, rng()))
        found, swapped = Annealing()(q, start, rng()), BestSwap()(q, start, rng())
        assert int(found.sum()) == int(swapped.sum()) == 7
        assert best - 1e-9 <= energy(q, found) <= energy(q, swapped) + 1e-9
        assert energy(q, swapped) <= energy(q, start)
        hits += energy(q, found) < best + 1e-9
        near += energy(q, swapped) < best + 1e-9
    assert hits >= 19
    assert near >= 4


def test_a_swap_cannot_improve_the_answer_of_either():
    q, start = problem(3, n=40, k=15)
    for solver in (BestSwap(), Annealing(restarts=2)):
        x = solver(q, start, rng())
        for out in x.nonzero().flatten():
            for into in (~x).nonzero().flatten():
                y = x.clone()
                y[out], y[into] = False, True
                assert energy(q, y) >= energy(q, x) - 1e-9


def test_the_penalty_form_has_the_same_minimiser():
    q, start = problem(5, n=10, k=4)
    free, const = penalised(q, 4, 10 * float(q.abs().sum()))
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 10)
    values = ((every @ free) * every).sum(1) + const
    best = every[values.argmin()].bool()
    assert torch.equal(best, Exhaustive()(q, start, rng()))
    assert float(values.min()) == pytest.approx(energy(q, best))


@pytest.mark.parametrize("solver", [Exhaustive(), BestSwap(), Annealing(2)])
def test_nothing_to_choose(solver):
    full, q = torch.ones(5, dtype=torch.bool), torch.randn(5, 5, dtype=F64)
    assert torch.equal(solver(q, full, rng()), full)
    assert not bool(solver(q, ~full, rng()).any())
    some = torch.tensor([True, False, True, False, False])
    assert int(solver(torch.zeros(5, 5, dtype=F64), some, rng()).sum()) == 2


def test_refusals():
    with pytest.raises(RecipeError, match="choices, more than 2,000,000; use Annealing"):
        Exhaustive()(*problem(0, n=40, k=20), rng())
    for wrong in ({"restarts": 0}, {"low": 0.0}, {"high": 1e-6}, {"factor": 1.0}):
        with pytest.raises(RecipeError, match="Annealing: restarts must be at least 1, 0 < low <= high"):
            Annealing(**wrong)
