"""Groups and losses: partitions are checked, gradients are autograd's, refits are exact."""

import numpy as np
import pytest
import torch
from tests.unit.inverse.problems import regression

from openwork.errors import DataError, DivergedError, RecipeError, StructureError
from openwork.inverse import LeastSquares, Logistic, Quadratic, as_groups
from openwork.inverse.objective import solve


def labelled(seed=0, rows=200, n=6):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=rng, dtype=torch.float64)
    p = torch.sigmoid(2 * x[:, 0] - x[:, 1])
    return x, (torch.rand(rows, generator=rng) < p).long()


def test_labels_and_index_lists_say_the_same():
    for given in ([0, 1, 0, 2], torch.tensor([0, 1, 0, 2]), np.array([0.0, 1.0, 0.0, 2.0]), [[2, 0], [1], [3]]):
        found = as_groups(given, 4)
        assert [i.tolist() for i in found.indices] == [[0, 2], [1], [3]]
        assert found.labels.tolist() == [0, 1, 0, 2]
    values = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert found.norms(values).tolist() == [5.0, 1.0, 0.0]
    assert found.cover([0, 2]).tolist() == [True, False, True, True]
    assert as_groups(found, 4) is found


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [1, 2, 3]], "must not overlap, group 1 repeats an index that is already in a group"),
        ([[0, 0], [1, 2, 3]], "must not overlap, group 0 repeats"),
        ([[0, 1], [2]], "must cover every coordinate, 3 is in none"),
        ([[0, 1], [], [2, 3]], "a group must have a member, group 1 has none"),
        ([[0, 1], [2, 3, 4]], "indices must be in 0 .. 3, group 1 holds"),
        ([0, 0, 2, 2], "every label of 0 .. 2 must occur, group 1 is empty"),
        ([0, 0, -1, 1], "labels must not be negative, got -1"),
        ([0, 1], "labels must have one entry for each of 4 coordinates"),
        ([0.0, float("nan"), 1.0, 1.0], "labels must be whole numbers without NaN"),
        ([[0, 0.5], [1, 2, 3]], "group 0 must be whole numbers without NaN"),
        ([True, False, True, True], "labels must be integers, got torch.bool"),
        (as_groups([0, 1], 2), "must split 4 coordinates, got a partition of 2"),
    ],
)
def test_a_bad_partition_is_refused(groups, message):
    with pytest.raises(StructureError, match=message):
        as_groups(groups, 4)


def losses():
    _, _, _, x, y = regression(0, outputs=(2,))
    lx, ly = labelled()
    return {
        "quadratic": Quadratic(x.T @ x, x.T @ y[:, 0], 3.0),
        "two outputs": LeastSquares(x, y),
        "logistic": Logistic(lx, ly, ridge=0.1),
    }


@pytest.mark.parametrize("name", ["quadratic", "two outputs", "logistic"])
def test_gradient_curvature_and_lipschitz_constant(name):
    loss = losses()[name]
    beta = 0.3 * torch.randn(loss.shape, dtype=torch.float64)
    n = loss.shape[0]
    step = 1e-5
    grad, flat = loss.grad(beta).flatten(), beta.flatten()
    for i in range(0, flat.numel(), 3):
        ahead, back = flat.clone(), flat.clone()
        ahead[i] += step
        back[i] -= step
        slope = (loss.value(ahead.reshape(beta.shape)) - loss.value(back.reshape(beta.shape))) / (2 * step)
        assert slope == pytest.approx(float(grad[i]), rel=1e-5, abs=1e-5)
    whole = loss.curvature(beta, torch.arange(n))
    for i in range(n):
        ahead, back = beta.clone(), beta.clone()
        ahead[i] += step
        back[i] -= step
        row = ((loss.grad(ahead) - loss.grad(back)) / (2 * step)).reshape(n, -1)[:, 0]
        torch.testing.assert_close(row, whole[i], rtol=1e-5, atol=1e-5)
    assert float(torch.linalg.eigvalsh(whole)[-1]) <= loss.lipschitz() * (1 + 1e-12)


@pytest.mark.parametrize("name", ["quadratic", "two outputs", "logistic"])
def test_after_a_refit_the_gradient_on_the_support_is_zero(name):
    loss = losses()[name]
    support = torch.zeros(loss.shape[0], dtype=torch.bool)
    assert not loss.refit(support).any()
    support[1:4] = True
    beta = loss.refit(support)
    assert float(loss.grad(beta)[support].abs().max()) < 1e-8
    assert not beta[~support].any()


def test_least_squares_from_its_gram_matrix():
    loss, _, _, x, y = regression(1, outputs=(3,))
    gram = LeastSquares.from_gram(x.T @ x, x.T @ y, float(y.square().sum()))
    beta = torch.randn(24, 3, dtype=torch.float64)
    want = float((y - x @ beta).square().sum()) / 2
    assert loss.value(beta) == pytest.approx(want, rel=1e-12)
    assert gram.value(beta) == pytest.approx(want, rel=1e-12)


def test_singular_systems_get_the_smallest_solution():
    a = torch.ones(2, 2, dtype=torch.float64)
    torch.testing.assert_close(solve(a, torch.tensor([2.0, 2.0], dtype=torch.float64)), torch.ones(2).double())
    torch.testing.assert_close(solve(0 * a, torch.zeros(2, 1).double()), torch.zeros(2, 1).double())


def test_bad_data_is_refused():
    two, three = torch.eye(2), torch.ones(3)
    for call, message in (
        (lambda: Quadratic(two, three), "Q must be 3 x 3 like b is long"),
        (lambda: Quadratic(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(2)), "Q must be symmetric"),
        (
            lambda: LeastSquares(torch.ones(4, 2), three),
            "LeastSquares: X and y must have equally many rows, got 4 and 3",
        ),
        (lambda: LeastSquares(torch.full((3, 2), torch.nan), three), "X: must be finite, got NaN or infinity"),
        (lambda: LeastSquares(three, three), r"X: must have 2 dimensions, got shape \(3,\)"),
        (lambda: LeastSquares(torch.ones(3, 2), torch.ones(3, 1, 1)), "y: must have 1 or 2 dimensions"),
        (lambda: LeastSquares(torch.ones(0, 2), torch.ones(0)), "X: must not be empty"),
        (lambda: Logistic(torch.ones(3, 2), [0, 1, 2]), "Logistic: y must be one column of 0 and 1"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(RecipeError, match="Logistic: ridge must not be negative, got -1"):
        Logistic(torch.ones(2, 1), [0, 1], ridge=-1)


def test_newton_says_when_it_fails(monkeypatch):
    x, y = labelled()
    monkeypatch.setattr("openwork.inverse.objective.solve", lambda a, b: 1e-9 * b)
    with pytest.raises(DivergedError, match="Newton's method must converge in 100 steps"):
        Logistic(x, y).refit(torch.ones(6, dtype=torch.bool))


def test_logistic_regression_with_separable_classes_needs_a_ridge():
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    beta = Logistic(x, [0, 0, 1, 1], ridge=0.1).refit(torch.ones(1, dtype=torch.bool))
    assert 0.5 < float(beta[0]) < 5
