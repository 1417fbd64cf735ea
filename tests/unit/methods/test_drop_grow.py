"""SET and RigL: what is dropped, grown, kept exact and explored."""

import math
from dataclasses import replace

import pytest
import torch
from tests.unit.methods.scoring import kept_by_hand, situation
from torch import nn

import openwork as ow
from openwork.allocation import Uniform
from openwork.core.now import Phase
from openwork.criteria import Random
from openwork.methods import rigl, set_
from openwork.rules.drop_grow import ConstantFraction, CosineFraction, DropGrow
from openwork.schedules import Periodic


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 6))


def step(model, optimizer, seed):
    rng = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    (model(torch.randn(8, 10, generator=rng)) - torch.randn(8, 6, generator=rng)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("method", [set_, rigl], ids=["set", "rigl"])
@pytest.mark.parametrize("structure", [ow.Element(), ow.Row(), ow.Block(3, 4)], ids=repr)
def test_layer_counts_never_change(method, structure):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model, method(0.4, structure, steps=40, every=3, alpha=0.5), optimizer)
    first = {n: int(u.sum()) for n, u in run.state_dict()["units"].items()}
    total = sum(u.numel() for u in run.state_dict()["units"].values())
    assert sum(first.values()) == math.ceil(0.4 * total - 1e-9)
    changed = 0
    for i in range(40):
        step(model, optimizer, i)
        assert {n: int(u.sum()) for n, u in run.state_dict()["units"].items()} == first
        changed = changed + run.log[-1]["changed"] if run.log[-1]["step"] == i + 1 else changed
    assert changed > 0
    assert {n: int(u.sum()) for n, u in run.finish().units.items()} == first
    assert [e["step"] for e in run.log] == list(range(0, 30, 3))


def test_rigl_moves_what_brute_force_moves():
    """Active after an update: the largest |w| of the active, then the largest |g| of all others."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = ow.attach(model, rigl(0.3, steps=100, every=4, alpha=0.4, scope="layer"), optimizer)
    for i in range(4):
        before = {n: m.clone() for n, m in run.masks.items()}
        step(model, optimizer, i)
        if i < 3:
            continue
        # replay the step by hand to know the weights right before the update
    grads, kept = {}, {}
    twin = net()
    other = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    again = ow.attach(twin, rigl(0.3, steps=100, every=1000, alpha=0.4, scope="layer"), other)
    for i in range(4):
        if i == 3:
            rng = torch.Generator().manual_seed(3)
            x, y = torch.randn(8, 10, generator=rng), torch.randn(8, 6, generator=rng)
            loss = (twin(x) - y).square().mean()
            names = dict(twin.named_parameters())
            grads = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
        step(twin, other, i)
    fraction = 0.4 / 2 * (1 + math.cos(math.pi * 4 / 75))
    for name in before:
        weight, gradient = (
            dict(t.items())[name].detach().flatten().abs().tolist() for t in (dict(twin.named_parameters()), grads)
        )
        mask = again.masks[name].flatten().tolist()
        assert mask == before[name].flatten().tolist()
        active = [i for i, m in enumerate(mask) if m]
        drop = int(fraction * len(active))
        assert drop > 0
        stay = kept_by_hand([weight[i] if mask[i] else -1.0 for i in range(len(mask))], len(active) - drop)
        grown = kept_by_hand([-1.0 if i in stay else gradient[i] for i in range(len(mask))], drop)
        kept[name] = stay | grown
        assert set(run.masks[name].flatten().nonzero().flatten().tolist()) == kept[name]
        # grown weights start at zero with no momentum; the rest is as without the update
        now, was = (
            dict(model.named_parameters())[name].detach().flatten(),
            dict(twin.named_parameters())[name].detach().flatten(),
        )
        momentum = optimizer.state[dict(model.named_parameters())[name]]["momentum_buffer"].flatten()
        for i in range(len(mask)):
            new = i in grown and not mask[i]
            if new or i not in kept[name]:
                assert now[i] == 0
                assert momentum[i] == 0
            else:
                assert now[i] == was[i]


def test_growing_does_not_change_the_function():
    """Dropped weights go, grown ones start at zero: the network equals the one with the kept weights only."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run = ow.attach(model, rigl(0.5, steps=100, every=2, alpha=0.3), optimizer)
    step(model, optimizer, 0)
    before = run.masks
    step(model, optimizer, 1)
    only_old = net()
    only_old.load_state_dict(model.state_dict())
    with torch.no_grad():
        for n, p in only_old.named_parameters():
            if n in run.masks:
                p.mul_(before[n] & run.masks[n])
    x = torch.ones(3, 10)
    assert any(bool((run.masks[n] & ~before[n]).any()) for n in run.masks)
    assert torch.equal(model(x), only_old(x))


def explore(density, fraction, updates, n=100_000, seed=0):
    """Measured exploration of random growth on one layer, with the fractions used."""
    model = nn.Linear(n // 250, 250, bias=False)
    rule = DropGrow(Random(), fraction=fraction, allocation=Uniform())
    now = situation(model, ow.Recipe("made", ow.Element(), rule, Periodic(density, 1, updates + 1)))
    now = replace(now, rng=torch.Generator().manual_seed(seed))
    state, rates = rule.init(now), []
    for t in range(updates + 1):
        step = rule.update(replace(now, step=t), Phase(density, True), state)
        now, state = replace(now, units=step.units), step.state
        rates.append(step.log["ever_active"])
    return rates


def test_exploration_follows_the_closed_form():
    """E[1 - R] = (1 - d) prod_t (1 - f_t d / (1 - (1 - f_t) d)) for random growth."""
    d, updates = 0.05, 40
    fraction = CosineFraction(0.5, updates)
    rates = explore(d, fraction, updates)
    never = 1 - d
    for t in range(1, updates + 1):
        f = fraction(t)
        never *= 1 - f * d / (1 - (1 - f) * d)
    assert rates[0] == d
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(1 - never, rel=0.01)


def test_a_known_number():
    """d = 0.05, cosine from 0.5 over 40 updates, the first at f = 0.5: 0.4432."""
    fraction = CosineFraction(0.5, 40)
    assert fraction(0) == 0.5
    never = 1 - 0.05
    for t in range(40):
        f = 0.25 * (1 + math.cos(math.pi * t / 40))
        never *= 1 - f * 0.05 / (1 - (1 - f) * 0.05)
        assert fraction(t) == pytest.approx(f, rel=1e-12)
    assert round(1 - never, 4) == 0.4432


def test_a_constant_fraction_drops_its_share():
    rates = explore(0.1, ConstantFraction(0.3), 2, n=1000)
    assert rates[0] == 0.1
    assert rates[1] <= 0.13


def test_full_layers_skip_their_updates():
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = ow.attach(model, set_(0.2, steps=20, every=1), optimizer)
    assert run.masks.kept("1.weight") == 80  # ERK makes the small layer dense
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(2, 30)).sum().backward()
        optimizer.step()
    assert run.masks.kept("1.weight") == 80
