"""Group OMP, OMPR and the sequential group LASSO against brute force, their guarantees and each other."""

import math
from itertools import combinations

import pytest
import torch
from tests.unit.inverse.problems import brute, quadratic, regression

from openwork.errors import DivergedError, RecipeError
from openwork.inverse import (
    LeastSquares,
    Logistic,
    Quadratic,
    as_groups,
    group_lasso,
    group_omp,
    group_ompr,
    sequential_group_lasso,
    tau,
)
from openwork.inverse.pursuit import refitted, swapped


@pytest.mark.parametrize("score", ["grad", "ortho", "gain"])
def test_orthonormal_designs_are_solved_exactly(score):
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        x = torch.linalg.qr(torch.randn(30, 16, generator=rng, dtype=torch.float64))[0]
        objective = LeastSquares(x, torch.randn(30, 2, generator=rng, dtype=torch.float64))
        labels = torch.arange(8).repeat_interleave(2)
        for k in (1, 2, 3):
            found, (loss, groups) = group_omp(objective, labels, k, score), brute(objective, labels, k)
            assert set(found.order) == groups
            assert found.losses[-1] == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize("score", ["grad", "ortho", "gain"])
def test_losses_fall_and_the_residual_is_orthogonal_to_the_selected_columns(score):
    objective, labels, _, x, y = regression(0)
    found = group_omp(objective, labels, 8, score)
    assert sorted(found.order) == list(range(8))
    assert all(b <= a + 1e-12 for a, b in zip(found.losses[:-1], found.losses[1:], strict=True))
    for k in range(1, 8):
        part = group_omp(objective, labels, k, score)
        assert part.order == found.order[:k]
        assert part.losses == found.losses[: k + 1]
        assert torch.equal(part.support, torch.isin(labels, torch.tensor(part.order)))
        assert not part.beta[~part.support].any()
        assert float((x[:, part.support].T @ (y - x @ part.beta)).abs().max()) < 1e-8


def test_the_scores_are_what_they_say():
    objective, labels, _, x, y = regression(1, rows=40, noise=2.0)
    first = group_omp(objective, labels, 1, "grad").order[0]
    assert first == max(range(8), key=lambda i: float((x[:, labels == i].T @ y).norm()))
    bases = [torch.linalg.qr(x[:, labels == i])[0] for i in range(8)]
    assert group_omp(objective, labels, 1, "ortho").order[0] == max(
        range(8), key=lambda i: float((bases[i].T @ y).norm())
    )
    two = group_omp(objective, labels, 2, "gain")
    one = two.order[0]
    rest = {i: brute_pair(objective, labels, one, i) for i in range(8) if i != one}
    assert two.order[1] == min(rest, key=rest.get)
    unequal = Quadratic(torch.diag(torch.tensor([1.0, 100.0])), torch.tensor([2.0, 10.0]))
    assert group_omp(unequal, [0, 1], 1, "grad").order == (1,)
    assert group_omp(unequal, [0, 1], 1, "ortho").order == (0,)
    assert group_omp(unequal, [0, 1], 1, "gain").order == (0,)


def brute_pair(objective, labels, one, other):
    return objective.value(objective.refit((labels == one) | (labels == other)))


def test_the_guarantee_of_group_omp_holds_at_every_pick():
    """After R picks the gap to the best k groups is at most ``(1 - mu / (k L_1))^R`` of the gap at zero."""
    for seed in range(6):
        objective, labels, _, _, _ = regression(seed, rows=60, groups=10, size=2, noise=1.0)
        parts = as_groups(labels, 20)
        mu = float(torch.linalg.eigvalsh(objective.Q)[0])
        rough = max(float(torch.linalg.eigvalsh(objective.Q[i][:, i])[-1]) for i in parts.indices)
        losses = group_omp(objective, labels, 10).losses
        for k in (1, 2, 3):
            best = brute(objective, labels, k)[0]
            gap = losses[0] - best
            for r, loss in enumerate(losses):
                assert loss - best <= gap * (1 - mu / (k * rough)) ** r + 1e-9
            enough = math.ceil(k * rough / mu * math.log(1 / 0.05))
            assert losses[min(enough, 10)] <= best + 0.05 * gap


def test_ompr_is_never_worse_than_omp_and_more_often_the_best():
    hits = {"omp": 0, "ompr": 0, "always": 0}
    for seed in range(100):
        objective, labels, _, _, _ = regression(seed, rows=16, groups=7, size=2, noise=0.5)
        best = brute(objective, labels, 3)[0]
        omp = group_omp(objective, labels, 3).losses[-1]
        found = {
            "omp": omp,
            "ompr": objective.value(group_ompr(objective, labels, 3).beta),
            "always": objective.value(group_ompr(objective, labels, 3, rounds=10, accept="always").beta),
        }
        for name, loss in found.items():
            assert loss <= omp + 1e-12
            hits[name] += loss <= best + 1e-9
    assert hits["omp"] < hits["ompr"] <= hits["always"]


def extremes(hessian, groups, size, pick):
    """The smallest and the largest eigenvalue over all sets of so many groups."""
    found = []
    for chosen in combinations(range(groups), pick):
        at = torch.cat([torch.arange(size * i, size * i + size) for i in chosen])
        values = torch.linalg.eigvalsh(hessian[at][:, at])
        found.append((float(values[0]), float(values[-1])))
    return min(low for low, _ in found), max(high for _, high in found)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_guarantee_of_ompr_holds_with_the_constants_of_the_design(noise):
    """k' >= k (L_2^2 / mu^2 + 1) groups and R >= k (L_2 / mu) log(gap / eps) rounds give L <= L* + eps (Theorem B.3).

    On well-conditioned designs k' is below the number of groups, and the planted ones are among those found.
    """
    groups, size, k, eps = 9, 2, 2, 1e-6
    for seed in range(4):
        objective, labels, planted, _, _ = regression(seed, 4000, groups, size, k, noise)
        smooth = extremes(objective.Q, groups, size, 2)[1]
        enough = next(
            p
            for p in range(k, groups)
            if p >= k * ((smooth / extremes(objective.Q, groups, size, min(groups, k + p))[0]) ** 2 + 1)
        )
        mu = extremes(objective.Q, groups, size, min(groups, k + enough))[0]
        assert k < enough < groups
        best, chosen = brute(objective, labels, k)
        assert chosen == planted
        parts = as_groups(labels, groups * size)
        wrong = [i for i in range(groups) if i not in planted][:enough]
        now = refitted(objective, parts, tuple(wrong))  # the theorem lets the first set be any, also a wrong one
        losses = [now.losses[-1]]
        for _ in range(math.ceil(k * smooth / mu * math.log((losses[0] - best) / eps))):
            outside = parts.norms(objective.grad(now.beta)).index_fill(0, torch.tensor(now.order), -1.0)
            now = swapped(objective, parts, now, int(outside.argmax()), parts.norms(now.beta))
            losses.append(now.losses[-1])
        assert losses[0] > best + 0.1
        assert min(losses) <= best + eps
        found = group_ompr(objective, labels, k, enough, len(losses) - 1, accept="always")
        assert objective.value(found.beta) <= best + eps
        assert planted <= set(found.order)
        assert len(found.order) <= enough


def test_planted_groups_are_recovered():
    for seed in range(20):
        objective, labels, planted, _, _ = regression(seed, rows=40, noise=0.01)
        assert set(group_ompr(objective, labels, 3).order) == planted
        wide = group_ompr(objective, labels, 3, k_prime=5)
        assert planted <= set(wide.order)
        assert len(wide.order) == 5


def test_a_swap_repairs_a_wrong_first_pick():
    """A long column near the sum of two others comes in first; its small coefficient then gives it away."""
    rng = torch.Generator().manual_seed(0)
    a, b, c = torch.linalg.qr(torch.randn(20, 3, generator=rng, dtype=torch.float64))[0].T
    objective = LeastSquares(torch.stack([10 * (a + b + 0.3 * c), a, b], 1), a + 1.6 * b)
    assert group_omp(objective, [0, 1, 2], 2).order[0] == 0
    found = group_ompr(objective, [0, 1, 2], 2)
    assert set(found.order) == {1, 2}
    assert objective.value(found.beta) == pytest.approx(0, abs=1e-12)


def test_groups_in_the_span_are_not_picked():
    _, _, _, x, y = regression(5, groups=3)
    objective = LeastSquares(torch.cat([x, x[:, :3]], 1), y)
    labels = torch.arange(4).repeat_interleave(3)
    for score in ("grad", "ortho", "gain"):
        found = group_omp(objective, labels, 4, score)
        assert len(found.order) == 3
        assert not {0, 3} <= set(found.order)
    assert len(sequential_group_lasso(objective, labels, 4).order) == 3
    inner = torch.cat([x, x[:, :1]], 1)  # a dependent column inside a group
    found = group_omp(LeastSquares(inner, y), [0] * 3 + [1] * 3 + [2] * 3 + [0], 3)
    assert float(LeastSquares(inner, y).grad(found.beta).abs().max()) < 1e-8
    assert bool(found.beta.isfinite().all())
    nothing = Quadratic(torch.eye(2), torch.zeros(2))
    assert group_omp(nothing, [0, 1], 2).order == ()
    assert group_ompr(nothing, [0, 1], 2).order == ()


def test_ties_take_the_lowest_index():
    objective = Quadratic(torch.eye(4), torch.ones(4))
    for score in ("grad", "ortho", "gain"):
        assert group_omp(objective, [0, 1, 2, 3], 3, score).order == (0, 1, 2)
    assert sequential_group_lasso(objective, [0, 1, 2, 3], 3).order == (0, 1, 2)


def test_several_outputs_and_general_losses():
    objective, labels, planted, _, _ = regression(3, noise=1e-9, outputs=(4,))
    found = group_omp(objective, labels, 3, "ortho")
    assert set(found.order) == planted
    assert found.beta.shape == (24, 4)
    assert sequential_group_lasso(objective, labels, 3).order == group_omp(objective, labels, 3).order
    _, labels, _, x, _ = regression(4, rows=300)
    truth = torch.where(labels == 2, 2.0, 0.0).double()
    y = torch.rand(300, generator=torch.Generator().manual_seed(0)) < torch.sigmoid(x @ truth)
    logistic = Logistic(x, y.long(), ridge=1e-3)
    for score in ("grad", "ortho", "gain"):
        found = group_omp(logistic, labels, 2, score)
        assert found.order[0] == 2
        assert float(logistic.grad(found.beta)[found.support].abs().max()) < 1e-8
    assert sequential_group_lasso(logistic, labels, 2).order == group_omp(logistic, labels, 2).order


def test_sequential_group_lasso_picks_what_omp_picks():
    for seed in range(5):
        objective, labels, _, _, _ = regression(seed)
        omp, lasso = group_omp(objective, labels, 5), sequential_group_lasso(objective, labels, 5)
        assert lasso.order == omp.order
        assert lasso.losses == pytest.approx(omp.losses, abs=1e-10)
        for chosen in (omp.order[:j] for j in range(5)):  # exactly one group joins
            grad = as_groups(labels, 24).norms(objective.grad(objective.refit(as_groups(labels, 24).cover(chosen))))
            top = grad.topk(2).values.tolist()
            beta = group_lasso(objective, labels, top[0] - 0.02 * (top[0] - top[1]), chosen)
            on = set(as_groups(labels, 24).norms(beta).nonzero().flatten().tolist())
            assert on - set(chosen) == {omp.order[len(chosen)]}


def test_at_tau_nothing_is_active_and_just_below_one_group():
    counted = 0
    for seed in range(30):
        objective, labels = quadratic(seed, groups=4)
        parts = as_groups(labels, 8)
        top = parts.norms(objective.b).topk(2)
        edge = tau(objective, labels)
        assert edge == pytest.approx(float(top.values[0]), rel=1e-14)
        assert float(group_lasso(objective, labels, edge).norm()) < 1e-9
        if float(top.values[1]) < 0.9 * edge:
            active = parts.norms(group_lasso(objective, labels, 0.97 * edge)).nonzero().flatten().tolist()
            assert active == [int(top.indices[0])]
            counted += 1
    assert counted >= 10
    assert tau(objective, labels, range(4)) == 0
    assert tau(objective, labels, [0]) == pytest.approx(
        float(parts.norms(objective.grad(objective.refit(labels == 0)))[1:].max()), rel=1e-14
    )


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_group_lasso_fulfils_its_optimality_conditions(outputs):
    objective, labels, _, _, _ = regression(2, outputs=outputs)
    parts = as_groups(labels, 24)
    edge = tau(objective, labels)
    for share, free in ((0.5, ()), (0.1, (0, 3)), (0.0, ())):
        lam = share * edge
        beta = group_lasso(objective, labels, lam, free)
        grad, sizes = objective.grad(beta), parts.norms(beta)
        for i, at in enumerate(parts.indices):
            if i in free:
                assert float(grad[at].norm()) < 1e-8 * edge
            elif sizes[i] > 0:
                torch.testing.assert_close(grad[at], -lam * beta[at] / sizes[i], rtol=0, atol=1e-8 * edge)
            else:
                assert float(grad[at].norm()) <= lam * (1 + 1e-9)


def test_refusals():
    objective, labels = quadratic(0)
    for call, message in (
        (lambda: group_omp(objective, labels, 4), "group_omp: k must be an integer in 1 .. 3, got 4"),
        (lambda: group_omp(objective, labels, True), "group_omp: k must be an integer in 1 .. 3, got True"),
        (lambda: group_omp(objective, labels, 1, "x"), "score must be 'grad', 'ortho' or 'gain', got 'x'"),
        (lambda: group_ompr(objective, labels, 0), "group_ompr: k must be an integer in 1 .. 3, got 0"),
        (lambda: group_ompr(objective, labels, 2, 1), "group_ompr: k_prime must be an integer in 2 .. 3, got 1"),
        (lambda: group_ompr(objective, labels, 2, rounds=-1), "rounds must be an integer of at least 0, got -1"),
        (lambda: group_ompr(objective, labels, 2, accept="x"), "accept must be 'if_better' or 'always', got 'x'"),
        (lambda: group_lasso(objective, labels, -1), "group_lasso: lam must be finite and not negative, got -1"),
        (lambda: group_lasso(objective, labels, math.nan), "lam must be finite and not negative, got nan"),
        (lambda: group_lasso(objective, labels, 1, [3]), "group_lasso: free must name groups in 0 .. 2, got 3"),
        (lambda: tau(objective, labels, [-1]), "tau: selected must name groups in 0 .. 2, got -1"),
        (
            lambda: sequential_group_lasso(objective, labels, 9),
            "sequential_group_lasso: k must be an integer in 1 .. 3",
        ),
        (lambda: sequential_group_lasso(objective, labels, 1, 1), r"margin must be in \(0, 1\), got 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            call()
    with pytest.raises(DivergedError, match="group_lasso: must converge in 3 steps, got a step of"):
        group_lasso(objective, labels, 0.1, max_iter=3)
