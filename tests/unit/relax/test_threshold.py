"""STR: the operator, its gradients, its decay, and the controlled density."""

import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core import views
from openwork.errors import DensityMissed, RecipeError
from openwork.methods import str_
from openwork.relax import SoftThreshold
from openwork.structure import Tiles

PART = Tiles("w", views.linear_view((4, 6)))
W = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gate(s, **options):
    made = SoftThreshold(initial=s, **options).gate(PART, 0.1)
    made.s.data = made.s.data.double()
    return made


def test_both_gradients():
    g, w, out = gate(-0.5), W.clone().requires_grad_(), torch.randn_like(W)
    (g(w) * out).sum().backward()
    f = 1 / (1 + math.exp(0.5))
    alive = W.abs() > f
    torch.testing.assert_close(w.grad, out * alive, rtol=1e-13, atol=0)
    want = -f * (1 - f) * (out * W.sign() * alive).sum()
    torch.testing.assert_close(g.s.grad, want, rtol=1e-12, atol=1e-15)


def test_the_operator_is_the_proximal_map_of_the_absolute_value():
    g = gate(-0.5)
    grid = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    f = float(g.threshold().detach())
    for value in (-2.0, -0.3, 0.0, 0.2, 1.7):
        best = grid[((grid - value) ** 2 / 2 + f * grid.abs()).argmin()]
        assert float(g.bare(torch.tensor(value, dtype=torch.float64)).detach()) == pytest.approx(float(best), abs=1e-4)


def test_exponential_thresholds_and_the_start():
    g = gate(-2.0, function="exp")
    assert float(g.threshold().detach()) == pytest.approx(math.exp(-2))
    torch.testing.assert_close(g(g.invert(W)), W, rtol=1e-12, atol=1e-12)


def test_decay_alone_moves_s_as_computed():
    """s_t = s_0 prod (1 - lr lambda), so the threshold grows."""
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = ow.attach(model, str_(density=0.5, steps=40, control="decay", initial=-3000.0, decay=0.1), optimizer)
    s = model.parametrizations.weight[0].s
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.zeros(2, 6)).sum().backward()
        optimizer.step()
    assert float(s.detach()) == pytest.approx(-3000 * (1 - 0.5 * 0.1) ** 20, rel=1e-5)
    run.detach()


@pytest.mark.parametrize("density", [0.5, 0.11])
def test_budget_control_meets_the_density_and_layers_differ(density):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x = torch.randn(64, 20)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    run = ow.attach(model, str_(density=density, steps=100), optimizer)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    result = run.finish()
    assert result.density == pytest.approx(density, abs=1e-3)
    shares = [float(m.float().mean()) for m in result.masks.values()]
    assert abs(shares[0] - shares[1]) > 0.02


def test_momentum_makes_decay_faster_by_one_over_its_rest():
    """s_t follows lr lambda / (1 - mu), and a threshold with a negative s only grows."""
    g = gate(-3000.0)
    optimizer = torch.optim.SGD([g.s], lr=0.01, momentum=0.875, weight_decay=0.01)
    s, v, seen = -3000.0, 0.0, [float(g.threshold().detach())]
    for _ in range(8000):
        g.s.grad = torch.zeros_like(g.s)
        optimizer.step()
        v = 0.875 * v + 0.01 * s
        s -= 0.01 * v
        seen.append(float(g.threshold().detach()))
    assert float(g.s.detach()) == pytest.approx(s, rel=1e-12)
    assert math.log(s / -3000) / 8000 == pytest.approx(-0.01 * 0.01 / (1 - 0.875), rel=1e-2)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


@pytest.mark.parametrize("left", [0, 2])
def test_decay_that_went_too_far_is_refused(left):
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = ow.attach(model, str_(density=0.5, steps=8, control="decay", initial=5.0, decay=0.0), optimizer)
    assert float(model.parametrizations.weight[0].s.detach()) == 5.0
    with torch.no_grad():
        model.parametrizations.weight.original.mul_(0.01)[0, :left] = 9.0
    said = {
        0: r"weight: 0 of 24 weights are above its threshold of 0.993 after 6 steps, less than a thousandth; lower the",
        2: "only 0.0833 of the units are still above their learned threshold",
    }
    with pytest.raises(DensityMissed, match=said[left]):
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(2, 6)).sum().backward()
            optimizer.step()
    run.detach()


def test_refusals():
    with pytest.raises(RecipeError, match="SoftThreshold: control must be 'budget' or 'decay', got 'x'"):
        str_(control="x")
    with pytest.raises(RecipeError, match="SoftThreshold: function must be 'sigmoid' or 'exp', got 'tanh'"):
        str_(function="tanh")
    with pytest.raises(RecipeError, match="SoftThreshold: decay must not be negative, got -1"):
        str_(decay=-1)
    with pytest.raises(RecipeError, match=r"str: needs 0 <= begin < end <= 1 as shares of 1000 steps, got 0.5 and 0.2"):
        str_(begin=0.5, end=0.2)
    with pytest.raises(RecipeError, match=r"structure must be Element\(\), got Block\(rows=2, cols=2\)"):
        str_(structure=ow.Block(2, 2))


@pytest.mark.parametrize("initial", [-3200.0, -2.0])
def test_thresholds_that_removed_nothing_are_told(initial):
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = ow.attach(model, str_(density=0.1, steps=40, control="decay", initial=initial, decay=0.5), optimizer)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(30):
            optimizer.zero_grad()
            (model(torch.ones(2, 6)) - 1).square().sum().backward()
            optimizer.step()
    said = [str(w.message) for w in seen]
    assert len(said) == (initial == -3200)
    want = r"SoftThreshold: no threshold has risen above a weight in 30 steps \(lowest s -27\d\d.*plain magnitude"
    assert all(re.match(want, m) for m in said)
    run.detach()
