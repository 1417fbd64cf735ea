"""Powerpropagation: start, gradient, order, groups."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core import views
from openwork.errors import RecipeError
from openwork.methods import powerpropagation
from openwork.relax import Power
from openwork.structure import Tiles

W = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SINGLE, BLOCKS = (Tiles("w", views.linear_view((4, 6)), b) for b in ((1, 1), (2, 3)))


@pytest.mark.parametrize("alpha", [1.0, 1.375, 2.0, 4.0])
@pytest.mark.parametrize("part", [SINGLE, BLOCKS])
def test_the_start_is_the_ordinary_network(part, alpha):
    gate = Power(alpha).gate(part, 0.1)
    torch.testing.assert_close(gate(gate.invert(W)), W, rtol=1e-12, atol=0)
    assert bool((gate.invert(torch.zeros_like(W)) == 0).all())


@pytest.mark.parametrize("alpha", [1.375, 2.0, 3.0])
def test_gradient_of_single_weights(alpha):
    gate = Power(alpha).gate(SINGLE, 0.1)
    v = W.clone().requires_grad_()
    out = torch.randn_like(W)
    (gate(v) * out).sum().backward()
    torch.testing.assert_close(v.grad, alpha * W.abs() ** (alpha - 1) * out, rtol=1e-13, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 1.375, 2.0, 3.0])
def test_decay_on_the_root_is_a_power_penalty_on_the_weight(alpha):
    """lam theta^2 at the only theta whose weight is w equals lam |w|^(2 / alpha)."""
    gate = Power(alpha).gate(SINGLE, 0.1)
    theta = gate.invert(W)
    torch.testing.assert_close(0.3 * theta.square(), 0.3 * W.abs() ** (2 / alpha), rtol=1e-13, atol=0)
    grid = torch.linspace(-3, 3, 600, dtype=torch.float64)
    weights = torch.stack([gate.bare(torch.full((4, 6), float(t), dtype=torch.float64)) for t in grid])
    assert bool((weights.diff(dim=0) > 0).all())  # monotone, so there is no other theta


def test_no_gradient_is_infinite_at_zero():
    for part in (SINGLE, BLOCKS):
        v = torch.zeros(4, 6, requires_grad=True)
        Power(1.375).gate(part, 0.1)(v).sum().backward()
        assert bool(torch.isfinite(v.grad).all())


def test_groups_have_the_norm_of_their_root_to_the_power():
    """Lemma 2.3: |U_b| = |V_b|^2, so decay on V is a group lasso on U."""
    u = Power(2.0).gate(BLOCKS, 0.1).bare(W)
    norm_u, norm_v = BLOCKS.pool({"w": u}, "norm"), BLOCKS.pool({"w": W}, "norm")
    torch.testing.assert_close(norm_u, norm_v.square(), rtol=1e-12, atol=0)
    assert torch.equal(norm_u.argsort(), norm_v.argsort())


def test_masks_hide_and_the_fold_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = ow.attach(model, powerpropagation(density=0.5, steps=6, alpha=3.0, prune_at=0.5), optimizer)
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    want = model(x)
    result = run.finish()
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)
    assert result.density == 0.5
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_detaching_keeps_the_weights_of_now():
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = ow.attach(model, powerpropagation(density=0.5, steps=6, alpha=2.0), optimizer)
    now = model.weight.detach().clone()
    run.detach()
    assert torch.equal(model.weight, now)


def test_refusals():
    with pytest.raises(RecipeError, match=r"Power: alpha must be at least 1, got 0.5"):
        Power(0.5)
    with pytest.raises(RecipeError, match=r"prune_at must be a share of the steps in \(0, 1\], got 1.5"):
        powerpropagation(prune_at=1.5)
    with pytest.raises(RecipeError, match=r"gradual_from must be in \[0, prune_at\), got 0.9"):
        powerpropagation(prune_at=0.8, gradual_from=0.9)
    assert powerpropagation(steps=200, gradual_from=0.1, prune_at=0.6).schedule.begin == 20


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_a_layer_that_starts_at_zero_is_named(alpha):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    nn.init.zeros_(model[1].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run = ow.attach(model, powerpropagation(density=0.5, steps=6, alpha=alpha), optimizer)
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
    said = [str(w.message) for w in seen]
    assert len(said) == (alpha > 1)
    assert all(m.startswith("Power: 1.weight starts at zero, where the derivative of a power is zero") for m in said)
    run.detach()
