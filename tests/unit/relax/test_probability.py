"""ProbMask: projection, samples, budget, the probabilities' own optimiser."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core import views
from openwork.errors import DivergedError, RecipeError
from openwork.methods import probmask
from openwork.relax import Probabilities
from openwork.relax.probability import project_budget
from openwork.structure import Tiles

PART = Tiles("w", views.linear_view((2, 3)))


def by_breakpoints(values, budget):
    """The same projection by trying every interval between the points where the sum changes its slope."""
    if float(values.clamp(0, 1).sum()) <= budget:
        return values.clamp(0, 1)
    points = torch.cat([values, values - 1, torch.zeros(1)]).clamp_min(0).unique()
    sums = torch.stack([(values - v).clamp(0, 1).sum() for v in points])
    at = int((sums > budget).sum())
    a, b, fa, fb = points[at - 1], points[at], sums[at - 1], sums[at]
    return (values - (a + (fa - budget) / (fa - fb) * (b - a))).clamp(0, 1)


@given(st.lists(st.floats(-2, 3), min_size=1, max_size=30), st.floats(0.05, 1))
@settings(max_examples=200, deadline=None)
def test_projection(values, share):
    s = torch.tensor(values, dtype=torch.float64)
    budget = share * len(values)
    got = project_budget(s, budget)
    within = float(s.clamp(0, 1).sum()) <= budget * (1 + 1e-6)  # what float32 storage may add is left alone
    torch.testing.assert_close(got, s.clamp(0, 1) if within else by_breakpoints(s, budget), rtol=0, atol=1e-8)
    assert float(got.sum()) <= budget * (1 + (1e-6 if within else 1e-12))
    assert torch.equal(project_budget(got, budget), got)
    assert torch.equal(project_budget(got.float(), budget).float(), got.float())
    order = s.argsort()
    assert bool((got[order].diff() >= -1e-12).all())
    for i in range(0, len(values), 7):  # monotone in each coordinate
        more = s.clone()
        more[i] += 0.3
        assert float(project_budget(more, budget)[i]) >= float(got[i]) - 1e-6


def test_samples_tend_to_bernoulli():
    gate = Probabilities().gate(PART, 0.5)
    torch.manual_seed(0)
    s = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
    gate.s.data.copy_(s)
    gate.tau.fill_(1e-3)
    with torch.no_grad():
        mean = torch.stack([gate.sample() for _ in range(100_000)]).double().mean(0)
    sigma = (s * (1 - s) / 100_000).sqrt() + 1e-5
    assert bool(((mean - s).abs() < 3 * sigma).all())
    gate.tau.fill_(1.0)
    gate(torch.ones(2, 3)).sum().backward()
    assert bool(torch.isfinite(gate.s.grad).all())
    gate.eval()
    assert torch.equal(gate(torch.ones(2, 3)).flatten(), gate.s)


def test_probabilities_at_the_ends_have_the_slope_of_the_edge():
    """Against the same noise at the edge itself; inside nothing changes."""
    values = torch.tensor([0.0, 1e-7, 1.0, 1 - 1e-7, 0.3, 0.9])
    slopes = []
    for s in (values, values.clamp(1e-6, 1 - 1e-6)):
        gate = Probabilities().gate(PART, 0.5)
        gate.s.data.copy_(s)
        torch.manual_seed(0)
        draw = gate.sample()
        draw.sum().backward()
        slopes.append((draw.detach(), gate.s.grad))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=0)
    assert bool((slopes[0][1] > 0).all())


def test_the_norm_of_the_gradient_is_clipped_before_adam():
    gates = [Probabilities().gate(PART, 0.5) for _ in range(2)]
    adam = Probabilities().optimizer([g.s for g in gates])
    for size, want in ((1e6, 3.0), (1e-3, 1e-3 * 12**0.5)):
        for g in gates:
            g.s.grad = torch.full((6,), size)
        adam.step()
        norm = torch.cat([g.s.grad for g in gates]).norm()
        assert float(norm) == pytest.approx(want, rel=1e-5)


def test_a_unit_at_zero_returns():
    """The budget has room for one of two; the loss wants the one that lies at zero."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    run = ow.attach(model, probmask(density=0.5, steps=200, budget=(0.0, 0.01), learning_rate_of_s=0.05), optimizer)
    s = model.parametrizations.weight[0].s
    with torch.no_grad():
        s.copy_(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[0.0, 1.0]])
    for _ in range(100):
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()
    assert float(s.detach()[1]) > 0.5
    run.detach()


def test_a_run_says_how_many_draws_to_average():
    for samples in (1, 2):
        model = nn.Linear(4, 3)
        recipe = probmask(density=0.5, steps=10, samples=samples)
        run = ow.attach(model, recipe, torch.optim.SGD(model.parameters(), lr=0.1))
        assert run.samples == recipe.relaxation.samples == samples
        run.detach()
    assert probmask(density=0.5).relaxation.samples == 1


@pytest.mark.parametrize(("steps", "rate"), [(100, 0.1), (2000, 0.03), (10_000, 0.006), (117_000, 0.006)])
def test_probabilities_move_faster_in_short_trainings(steps, rate):
    assert probmask(steps=steps).relaxation.learning_rate_of_s == pytest.approx(rate)
    assert probmask(steps=steps, learning_rate_of_s=0.02).relaxation.learning_rate_of_s == 0.02


@torch.no_grad()
def test_budget_and_temperature():
    p = Probabilities(steps=100)
    assert p.budget(0.16, 0.1) == 1.0
    assert p.budget(0.38, 0.1) == pytest.approx(0.1 + 0.9 * 0.5**3)
    assert p.budget(0.6, 0.1) == p.budget(1.0, 0.1) == pytest.approx(0.1)
    begin, end = p.begin, p.end
    for step in range(101):  # the paper's cubic between the two epochs, flat outside
        done = min(1.0, max(0.0, (step / 100 - begin) / (end - begin)))
        assert p.budget(step / 100, 0.1) == pytest.approx(0.1 + 0.9 * (1 - done) ** 3, abs=1e-12)
    gate = p.gate(PART, 0.5)
    adam = p.optimizer([gate.s])
    p.at_step({"w": gate}, {}, adam, 50)
    assert float(gate.tau) == pytest.approx(0.97 * 0.5 + 0.03)
    assert adam.param_groups[0]["lr"] == pytest.approx(3e-3)
    p.at_step({"w": gate}, {}, adam, 100)
    assert float(gate.s.detach().sum()) == pytest.approx(3.0)


def test_only_adam_moves_the_probabilities():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.5)
    run = ow.attach(model, probmask(density=0.2, steps=100, learning_rate_of_s=0.006), optimizer)
    s = model[0].parametrizations.weight[0].s
    x, y = torch.randn(32, 20), torch.arange(32) % 4
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert float(s.detach().min()) > 1 - 0.0061
    assert s.grad is None
    run.detach()


def test_learned_masks_polarise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(256, 20)
    y = (x[:, 0] * x[:, 1] > 0).long()
    run = ow.attach(model, probmask(density=0.1, steps=400, learning_rate_of_s=0.1), optimizer)
    for step in range(400):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step == 355:
            s = torch.cat([m.parametrizations.weight[0].s.detach() for m in (model[0], model[2])])
    assert float(((s < 0.05) | (s > 0.95)).float().mean()) > 0.9
    result = run.finish()
    assert result.density == pytest.approx(0.1, abs=1e-3)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.9
    columns = result.masks["0.weight"].float().mean(0)
    assert float(columns[:2].mean()) > 1.5 * float(columns[2:].mean())


def test_refusals():
    with pytest.raises(DivergedError, match="keep-probabilities became NaN or infinite; lower their learning rate"):
        project_budget(torch.tensor([0.5, float("nan")]), 1.0)
    with pytest.raises(RecipeError, match="Probabilities: needs steps >= 1 and 0 <= begin < end <= 1, got 100, 0.7"):
        Probabilities(100, begin=0.7)
    with pytest.raises(RecipeError, match=r"learning_rate_of_s must be positive and final_temperature in \(0, 1\]"):
        Probabilities(100, learning_rate_of_s=0)
    with pytest.raises(RecipeError, match="Probabilities: samples must be at least 1, got 0; the paper draws 2"):
        probmask(samples=0)
    with pytest.raises(RecipeError, match=r"fix_at must lie between the end of the budget 0.6 and 1, got 0.5"):
        probmask(fix_at=0.5)
