"""Sequential Attention: its gates exactly, its picks on problems with a known answer, the scikit-learn estimator."""

import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import openwork.apps.feature_selection as module
from openwork.apps import SequentialSelector, select_features
from openwork.errors import DataError, DivergedError, RecipeError
from openwork.inverse import LeastSquares, group_omp


def classes(rows=400, n=8, seed=0):
    """The sign of the sum of columns 2 and 5 decides, 5 three times as much."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=rng)
    return x, (x[:, 2] + 3 * x[:, 5] > 0).long()


def quick(x, y, k, **more):
    return select_features(x, y, k, **{"steps": 300, "lr": 2e-2, **more})


def test_gates_of_a_whole_run():
    select = SequentialSelector(12, 6, per_step=2, seed=3)
    steps, history = 200, []
    for step in range(steps):
        with torch.no_grad():
            select.logits += torch.randn(12)
        gates = select.gates(step / steps)
        if step < 20:
            assert torch.equal(gates, torch.ones(12))
        elif len(select.order) < 6:
            assert bool((gates[select.selected] == 1).all())
            assert float(gates[~select.selected].detach().sum()) == pytest.approx(1, abs=1e-6)
        if new := select.advance((step + 1) / steps):
            history.append((step + 1, new))
            assert float(select.logits.detach().abs().max()) < 1e-4  # drawn anew
            assert bool(select.logits.any())
    assert [at for at, _ in history] == [80, 140, 200]  # the end of each phase
    assert [len(new) for _, new in history] == [2, 2, 2]
    assert len(set(select.order)) == 6
    assert select.order == tuple(i for _, new in history for i in new)
    assert select.gates(1.0).tolist() == [float(i in select.order) for i in range(12)]


def test_the_warm_up_gives_the_logits_no_gradient():
    select = SequentialSelector(5, 2, start=0.5)
    x = torch.randn(3, 5)
    (select(x, 0.49) ** 2).sum().backward()
    assert torch.equal(select.logits.grad, torch.zeros(5))
    (select(x, 0.5) ** 2).sum().backward()
    assert float(select.logits.grad.abs().max()) > 0
    assert torch.equal(select(x, 0.0), x)


def test_the_softmax_subtracts_the_largest_logit_of_the_unselected():
    select = SequentialSelector(3, 2, start=0.0)
    with torch.no_grad():
        select.logits.copy_(torch.tensor([500.0, 1.0, 1.0]))
    assert select.advance(0.5) == (0,)
    with torch.no_grad():
        select.logits.copy_(torch.tensor([500.0, 1.0, 1.0]))
    assert select.gates(0.6).tolist() == pytest.approx([1, 0.5, 0.5])


def test_the_last_candidate_is_forced_and_ties_take_the_lowest_index():
    select = SequentialSelector(3, 3, start=0.0)
    for expected, progress in ((0, 0.34), (1, 0.67), (2, 1.0)):
        with torch.no_grad():
            select.logits.zero_()
        if expected == 2:
            assert select.gates(0.7).tolist() == [1, 1, 1]
        assert select.advance(progress) == (expected,)
    assert select.advance(1.0) == ()
    assert select.attention().tolist() == [1, 1, 1]


def test_the_seed_decides_the_logits_and_the_state_is_saved():
    a, b, c = (SequentialSelector(4, 2, start=0.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.logits, b.logits)
    assert not torch.equal(a.logits, c.logits)
    a.advance(0.5)
    c.load_state_dict(a.state_dict())
    assert c.order == a.order
    assert torch.equal(c.selected, a.selected)


def test_selector_refusals():
    for more, message in (
        ({"n": 0, "k": 1}, "SequentialSelector: n must be a positive integer, got 0"),
        ({"n": 3, "k": 4}, "SequentialSelector: k must be at most the 3 candidates, got 4"),
        ({"n": 9, "k": 6, "per_step": 4}, "SequentialSelector: per_step must divide k = 6, got 4"),
        ({"n": 9, "k": 6, "start": 1.0}, r"SequentialSelector: start must be a share in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(RecipeError, match=message):
            SequentialSelector(**more)
    select = SequentialSelector(9, 6)
    with pytest.raises(RecipeError, match="advance must be called in every phase, got 3 phases at once"):
        select.advance(0.6)
    with torch.no_grad():
        select.logits[0] = torch.nan
    with pytest.raises(DivergedError, match="a logit became NaN or infinite"):
        select.advance(0.25)


def test_the_informative_features_are_found_in_order():
    x, y = classes()
    for seed in range(2):
        found = quick(x, y, 2, seed=seed)
        assert found.order == (5, 2)
        assert found.attention.shape == (2, 8)
        torch.testing.assert_close(found.attention[0].sum(), torch.tensor(1.0))
        assert float(found.attention[1, 5]) == 1
        assert int(found.attention[0].argmax()) == 5
        assert len(found.losses) == 2
    again = quick(x.numpy(), y.numpy(), 2, seed=seed)
    assert torch.equal(again.attention, found.attention)


def test_a_copy_of_a_picked_feature_is_not_picked_next():
    x, y = classes()
    both = torch.cat([x, x[:, 5:6] + 0.01 * torch.randn(400, 1, generator=torch.Generator().manual_seed(1))], 1)
    first, second = quick(both, y, 2).order
    assert first in (5, 8)
    assert second == 2


def test_a_linear_model_on_an_orthogonal_design_starts_in_the_order_of_omp():
    """Three of four picks; without a penalty the persisting weights fit the rest, and the last phase has no signal."""
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        x = torch.linalg.qr(torch.randn(64, 6, generator=rng, dtype=torch.float64))[0] * 8
        beta = torch.tensor([3.0, -2.0, 1.3, 0.85, 0.3, -0.1], dtype=torch.float64)
        y = x @ beta[torch.randperm(6, generator=rng)]
        omp = group_omp(LeastSquares(x, y), list(range(6)), 4)
        torch.manual_seed(seed)
        model = nn.Linear(6, 1)
        found = select_features(x, y, 4, model=model, steps=800, lr=2e-2, batch_size=64, standardise=False)
        assert found.order[:3] == omp.order[:3]


def test_standardising_makes_the_scale_of_a_feature_irrelevant():
    x, y = classes()
    scaled = x * torch.tensor([1, 1, 1e-3, 1, 50.0, 1e-3, 1, 1]) + 7
    assert quick(scaled, y, 2).order == (5, 2)
    assert quick(scaled, y, 2, standardise=False).order != (5, 2)


def test_constant_features_are_reported_and_not_picked():
    x, y = classes()
    x[:, [0, 3]] = torch.tensor([4.0, 0.0])
    with pytest.warns(UserWarning, match="left out 2 constant features: 0, 3"):
        found = quick(x, y, 6, steps=600)
    assert found.constant == (0, 3)
    assert set(found.order) == {1, 2, 4, 5, 6, 7}
    assert not found.attention[:, [0, 3]].any()
    with pytest.raises(DataError, match="k = 7 features must vary, got 6 of 8"):
        quick(x, y, 7)


def test_too_few_steps_are_warned_of():
    x, y = classes()
    with pytest.warns(UserWarning, match="100 steps give 11.2 to each of 8 phases"):
        quick(x, y, 8, steps=100)


def test_regression_with_several_targets():
    x, _ = classes()
    target = torch.stack([2 * x[:, 1], x[:, 6] + x[:, 1]], 1)
    assert set(quick(x, target, 2).order) == {1, 6}
    assert quick(x, 2 * x[:, 1], 1).order == (1,)


def test_refusals():
    x, y = classes(40)
    for call, message in (
        (
            lambda: quick(torch.where(x > 2, torch.nan, x), y, 2),
            "select_features: x must be finite, got NaN or infinity",
        ),
        (lambda: quick(x[:, 0], y, 1), r"x must be \(rows, features\) and not empty, got \(40,\)"),
        (lambda: quick(x, y[:9], 1), r"y must be \(rows,\) classes or \(rows,\) or \(rows, m\) floats for 40 rows"),
        (lambda: quick(x, y - 1, 1), "y must hold at least two classes numbered from 0, got several from -1"),
        (lambda: quick(x, 0 * y, 1), "at least two classes numbered from 0, got 1 class"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    for more, message in (
        ({"steps": 2}, r"select_features: steps must be at least one a phase \(2 phases\)"),
        ({"batch_size": 0}, "and batch_size at least 1"),
        ({"lr": 0.0}, "select_features: lr must be positive, got 0.0"),
        ({"start": -0.1}, "start must be a share"),
    ):
        with pytest.raises(RecipeError, match=message):
            quick(x, y, 2, **more)
    with pytest.raises(RecipeError, match="k must be at most the 8 candidates, got 9"):
        quick(x, y, 9)
    with pytest.raises(DivergedError, match="select_features: the loss must stay finite, got"):
        quick(x, x[:, 0] * 1e25, 2)


def test_the_estimator_selects_and_survives_clone_and_pickle():
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.tree import DecisionTreeClassifier

    x, y = (t.numpy() for t in classes())
    selector = module.SequentialAttentionSelector(2, steps=300, lr=2e-2)
    selector = clone(selector).fit(x, np.array(["no", "yes"])[y])
    assert selector.order_.tolist() == [5, 2]
    assert selector.get_support(indices=True).tolist() == [2, 5]
    assert np.array_equal(selector.transform(x), x[:, [2, 5]])
    assert pickle.loads(pickle.dumps(selector)).order_.tolist() == [5, 2]
    half = module.SequentialAttentionSelector(steps=300, lr=2e-2).fit(x, x[:, 1] * 0.5)
    assert half.order_[0] == 1
    assert len(half.order_) == 4
    pipeline = make_pipeline(module.SequentialAttentionSelector(2, steps=300, lr=2e-2), DecisionTreeClassifier())
    assert pipeline.fit(x, y).score(x, y) > 0.9
    with pytest.raises(RecipeError, match="y must hold one class a row or fractions, got a multilabel-indicator"):
        selector.fit(x, np.stack([y, 1 - y], 1))


def test_the_estimator_passes_the_checks_of_scikit_learn():
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(module.SequentialAttentionSelector(1, steps=3), on_fail=None)
    failed = {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"}
    assert len(results) > 20
    assert not failed


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch):
    monkeypatch.delitem(vars(module), "SequentialAttentionSelector", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.feature_selection", None)
    with pytest.raises(DataError, match=r"SequentialAttentionSelector needs scikit-learn; .*openwork\[data\]"):
        module.SequentialAttentionSelector  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        module.Nothing  # noqa: B018
