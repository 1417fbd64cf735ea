"""Lemmas 2.1 to 2.3 by one-dimensional minimisation, Theorem 1.1 by multistart, Algorithm 2."""

import math

import pytest
import torch
from tests.unit.inverse.problems import brute, quadratic, regression

from openwork.errors import RecipeError
from openwork.inverse import Quadratic, as_groups, composite, group_lasso, group_omp, group_ompr, regularised_ompr, tau
from openwork.inverse.penalties import (
    ATTENTION,
    LINEAR,
    LOG1P,
    POWER,
    SQRT,
    SQUARE,
    attention_minimiser,
    attention_penalty,
    group_power,
    l1_mask_minimiser,
    l1_mask_penalty,
    lambert_w,
    ridge_mask_minimiser,
    ridge_mask_penalty,
)

SIZES = torch.tensor([1e-3, 0.05, 0.2, 1.0, 1.16, 3.0, 40.0], dtype=torch.float64)
CLASS = [LINEAR, SQRT, POWER(0.3), LOG1P]


def least(function, low, high):
    """Minimum and minimiser of a unimodal function, elementwise over SIZES, by golden section."""
    gold = (math.sqrt(5) - 1) / 2
    low, high = torch.full_like(SIZES, low), torch.full_like(SIZES, high)
    for _ in range(200):
        a, b = high - gold * (high - low), low + gold * (high - low)
        left = function(a) < function(b)
        low, high = torch.where(left, low, a), torch.where(left, b, high)
    return function((low + high) / 2), (low + high) / 2


def test_lambert_w():
    x = torch.tensor([0.0, 1e-300, 1e-9, 0.1, 1.0, 2.7, 2.8, 50.0, 1e8, 1e300, -0.1, -0.3, -0.36], dtype=torch.float64)
    w = lambert_w(x)
    torch.testing.assert_close(w * torch.exp(w), x, rtol=1e-12, atol=1e-15)
    assert float(lambert_w(1.0)) == pytest.approx(0.5671432904097838, rel=1e-15)
    assert float(lambert_w(-math.exp(-1))) == pytest.approx(-1, abs=1e-6)
    for bad in (-0.4, math.nan, math.inf):
        with pytest.raises(RecipeError, match="lambert_w: x must be finite and at least -1/e"):
            lambert_w(bad)


def test_lemma_2_1_a_softmax_mask():
    value, at = least(lambda w: w.square() + SIZES.square() * torch.exp(-2 * w), -1.0, 10.0)
    torch.testing.assert_close(attention_penalty(SIZES), value, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(attention_minimiser(SIZES), at, rtol=0, atol=1e-6)
    assert float(attention_penalty(torch.tensor(0.0))) == 0


def test_the_penalty_of_lemma_2_1_is_not_subadditive():
    one, two = attention_penalty(torch.tensor([1.0, 2.0])).tolist()
    assert two - 2 * one == pytest.approx(0.23, abs=0.005)
    grid = torch.linspace(0, 5, 501, dtype=torch.float64)
    values = attention_penalty(grid)
    assert bool((values.diff() > 0).all())
    bend = values.diff().diff() > 0  # convex up to its inflection, concave after
    assert grid[1:-1][bend].max() == pytest.approx(1.16, abs=0.02)
    assert not ATTENTION.subadditive


def test_lemma_2_2_an_l1_penalty_on_the_mask():
    value, at = least(lambda w: w + SIZES.square() / w.square(), 1e-9, 60.0)
    torch.testing.assert_close(l1_mask_penalty(SIZES), value, rtol=1e-10, atol=0)
    torch.testing.assert_close(l1_mask_penalty(SIZES), 1.5 * 2 ** (1 / 3) * SIZES ** (2 / 3), rtol=1e-14, atol=0)
    torch.testing.assert_close(l1_mask_minimiser(SIZES), at, rtol=1e-5, atol=0)


def test_masked_ridge_is_the_group_lasso():
    value, at = least(lambda w: (w.square() + SIZES.square() / w.square()) / 2, 1e-9, 60.0)
    torch.testing.assert_close(ridge_mask_penalty(SIZES), value, rtol=1e-10, atol=0)
    torch.testing.assert_close(ridge_mask_minimiser(SIZES), at, rtol=1e-5, atol=0)


def test_masked_ridge_is_the_group_lasso_on_a_whole_problem():
    """``min_{w, b} L(w b) + lam/2 (|w|^2 + |b|^2)`` by descent ends at the group LASSO's optimum."""
    objective, labels = quadratic(0)
    lam = 0.3 * tau(objective, labels)
    u = group_lasso(objective, labels, lam)
    want = objective.value(u) + lam * float(as_groups(labels, 6).norms(u).sum())
    rng = torch.Generator().manual_seed(0)
    w = torch.rand(3, generator=rng, dtype=torch.float64).requires_grad_()
    b = torch.randn(6, generator=rng, dtype=torch.float64).requires_grad_()

    def masked():
        v = w[labels] * b
        loss = (v * (objective.Q @ v / 2 - objective.b)).sum()
        return loss + lam / 2 * (w.square().sum() + b.square().sum())

    descend([w, b], masked)
    assert float(masked().detach()) == pytest.approx(want, abs=1e-8)
    torch.testing.assert_close((w[labels] * b).detach(), u, rtol=0, atol=1e-4)


def descend(leaves, loss, steps=3000):
    optimizer = torch.optim.LBFGS(
        leaves, max_iter=steps, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def test_lemma_2_3_group_powerpropagation():
    labels = [0, 0, 1, 2, 2, 2]
    for b in (torch.randn(6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)):
        u = group_power(b, labels)
        norms = as_groups(labels, 6).norms(u)
        assert float(norms.sum()) == pytest.approx(float(b.square().sum()), rel=1e-14)
        torch.testing.assert_close(u[2:3] / u[2:3].norm(), b[2:3] / b[2:3].norm())


@pytest.mark.parametrize("q", [*CLASS, SQUARE, ATTENTION], ids=lambda q: q.name)
def test_penalties_rise_are_inverted_and_say_whether_they_are_subadditive(q):
    x = torch.linspace(0, 3, 61, dtype=torch.float64)
    values = q.q(x)
    assert float(values[0]) == 0
    assert bool((values.diff() > 0).all())
    torch.testing.assert_close(q.q_inverse(values), x, rtol=1e-12, atol=1e-14)
    over = q.q(x[:, None] + x[None, :]) - values[:, None] - values[None, :]
    assert bool((over <= 1e-12).all()) is q.subadditive
    norms = torch.rand(50, 4, dtype=torch.float64)
    lifted = composite(q, norms) >= norms.sum(1) - 1e-12  # Lemma 2.4
    assert bool(lifted.all()) is q.subadditive
    one = torch.tensor([[0.0, 0.7, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(composite(q, one), torch.tensor([0.7], dtype=torch.float64))  # Lemma 2.5


def multistart(objective, labels, q, lam, starts=4):
    """The lowest ``L(b) + lam q^-1(sum q(|b_i|))`` that descent finds from many starts and on every support."""
    parts = as_groups(labels, objective.shape[0])

    def total(b):
        return objective.value(b) + lam * float(composite(q, parts.norms(b)))

    best = total(torch.zeros(objective.shape, dtype=torch.float64))
    for seed in range(starts):
        rng = torch.Generator().manual_seed(seed)
        scale = 10 ** (2 * torch.rand((), generator=rng) - 1)
        b = (scale * torch.randn(objective.shape, generator=rng, dtype=torch.float64)).requires_grad_()

        def smooth(b=b):
            sizes = torch.stack([(b[i].square().sum() + 1e-14).sqrt() for i in parts.indices])
            return (b * (objective.Q @ b / 2 - objective.b)).sum() + lam * composite(q, sizes)

        descend([b], smooth, 100)
        found = b.detach()
        if bool(found.isfinite().all()):
            for keep in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
                best = min(best, total(found * parts.cover([i for i in keep if i < len(parts)])))
    return best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("q", CLASS, ids=lambda q: q.name)
def test_theorem_1_1(q, seed):
    objective, labels = quadratic(seed)
    lam = 0.97 * tau(objective, labels)
    u = group_lasso(objective, labels, lam)
    norms = as_groups(labels, 6).norms(u)
    assert int((norms > 0).sum()) == 1
    want = objective.value(u) + lam * float(norms.sum())
    assert objective.value(u) + lam * float(composite(q, norms)) == pytest.approx(want, rel=1e-12)
    lowest = multistart(objective, labels, q, lam)
    assert lowest >= want - 1e-9
    if q is LINEAR:
        assert lowest == pytest.approx(want, abs=1e-6)  # the search does find minima


def test_theorem_1_1_needs_subadditivity():
    """With ``q = x^2`` the composite is the norm of everything: two groups together are cheaper than one."""
    objective = Quadratic(torch.eye(2), torch.tensor([1.0, 0.95]))
    u = group_lasso(objective, [0, 1], 0.97)
    assert int((u != 0).sum()) == 1
    want = objective.value(u) + 0.97 * float(u.abs().sum())
    assert multistart(objective, [0, 1], SQUARE, 0.97) < want - 1e-2


def test_algorithm_2_is_ompr():
    hits = {"omp": 0, "ompr": 0, "algorithm 2": 0}
    for seed in range(20):
        objective, labels, _, _, _ = regression(seed, rows=16, groups=7, size=2, noise=0.5)
        best, omp = brute(objective, labels, 3)[0], group_omp(objective, labels, 3)
        found = regularised_ompr(objective, labels, 3, q=SQRT)
        value = objective.value(found.beta)
        assert value <= omp.losses[-1] + 1e-12
        assert torch.equal(found.support, torch.isin(labels, torch.tensor(found.order)))
        hits["omp"] += omp.losses[-1] <= best + 1e-9
        hits["ompr"] += objective.value(group_ompr(objective, labels, 3).beta) <= best + 1e-9
        hits["algorithm 2"] += value <= best + 1e-9
    assert hits["omp"] < hits["algorithm 2"]
    for seed in range(6):
        objective, labels, planted, _, _ = regression(seed, rows=40, noise=0.01)
        for q in CLASS:
            assert set(regularised_ompr(objective, labels, 3, q=q).order) == planted
        assert planted <= set(regularised_ompr(objective, labels, 3, k_prime=4).order)
    nothing = Quadratic(torch.eye(2), torch.zeros(2))
    assert regularised_ompr(nothing, [0, 1], 1).order == ()


def test_refusals():
    objective, labels = quadratic(0)
    with pytest.raises(RecipeError, match=r"POWER: p must be positive and finite, got 0"):
        POWER(0)
    with pytest.raises(RecipeError, match=r"regularised_ompr: q must be subadditive \(Theorem 1.1\), got x\^2"):
        regularised_ompr(objective, labels, 1, q=SQUARE)
    with pytest.raises(RecipeError, match="regularised_ompr: k_prime must be an integer in 2 .. 3, got 1"):
        regularised_ompr(objective, labels, 2, 1)
