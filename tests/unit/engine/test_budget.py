"""Budgets in parameters, multiply-accumulates, bytes and milliseconds, for one-shot and for gradual methods."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.engine.budget import Budget, check_target
from openwork.graph import count_macs
from openwork.graph.latency import LatencyTable
from openwork.methods import (
    gradual_magnitude,
    magnitude,
    random,
    sequential_attention_pp,
    spode,
    spode_iterative,
    synflow,
)

X = torch.zeros(1, 1, 8, 8)


def net():
    torch.manual_seed(0)
    return ow.build_model("mlp", hidden=(60, 36)).eval()


def batches():
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(32, 1, 8, 8, generator=rng), torch.arange(32) % 10)]


def reached(model, result, unit="macs"):
    small = ow.compact(model, result, example=X)
    params = sum(p.numel() for p in small.parameters())
    return {"macs": count_macs(small, X), "params": params, "bytes": 4 * params}[unit]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("unit", "value"), [("macs", 0.37), ("params", 0.5), ("bytes", 12_000)])
def test_a_budget_is_met_between_the_counts_of_an_allocation(scope, unit, value):
    model = net()
    dense = {"macs": count_macs(model, X), "bytes": 4 * sum(p.numel() for p in model.parameters())}
    dense["params"] = dense["bytes"] // 4
    result = ow.prune(model, magnitude(structure=ow.channels(example=X), scope=scope), target={unit: value})
    wanted = value if value > 1 else value * dense[unit]
    assert abs(reached(model, result, unit) - wanted) <= 0.01 * wanted
    told = result.manifest["budget"]
    assert told["reached"] == reached(model, result, unit)
    assert told["asked"] == value
    assert result.recipe.density == pytest.approx(told["units_share"])


def test_what_is_added_are_the_best_units_of_their_group():
    model = net()
    result = ow.prune(model, magnitude(structure=ow.channels(example=X)), target={"macs": 0.37})
    part = result.recipe.structure.fit_model(net(), ow.Select())[0]["1.weight"]
    scores = part.pool({n: p.detach() for n, p in net().named_parameters()}, "norm")
    kept = result.units["1.weight"]
    assert scores[kept].min() >= scores[~kept].max()


@pytest.mark.parametrize("make", [random, partial(synflow, rounds=3)])
def test_rules_that_are_asked_afresh_for_every_share(make):
    model = net()
    result = ow.prune(model, make(structure=ow.channels(example=X)), data=batches(), target={"macs": 0.4}, seed=3)
    again = ow.prune(net(), make(structure=ow.channels(example=X)), data=batches(), target={"macs": 0.4}, seed=3)
    assert abs(result.manifest["budget"]["share"] - 0.4) <= 0.004
    assert all(torch.equal(u, again.units[n]) for n, u in result.units.items())


def test_a_path_is_integrated_near_its_end_and_cut_there():
    model = net()
    recipe = spode(structure=ow.channels(example=X), steps=8)
    result = ow.prune(model, recipe, data=batches(), loss=F.cross_entropy, target={"params": 0.3})
    assert abs(reached(model, result, "params") / sum(p.numel() for p in net().parameters()) - 0.3) <= 0.003
    end = result.log[0]["path"][-1]["density"]
    assert end == pytest.approx(result.manifest["budget"]["units_share"], rel=0.06)


def train(model, run, optimizer, steps):
    x, y = batches()[0]
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y) + run.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


METHODS = {
    "gradual": lambda s: gradual_magnitude(structure=s, begin=2, end=10, every=2),
    "attention": lambda s: sequential_attention_pp(structure=s, steps=60, min_blocks=1),
}


@pytest.mark.parametrize("name", METHODS)
def test_gradual_methods_follow_their_curve_in_the_unit_of_the_budget(name):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    run = ow.attach(model, METHODS[name](ow.channels(example=X)), optimizer, target={"macs": 0.4})
    train(model, run, optimizer, 60)
    result = run.finish()
    dense = count_macs(net(), X)
    assert abs(reached(model, result) - 0.4 * dense) <= 0.004 * dense
    costs = [entry["macs"] for entry in result.log]
    shares = [entry["share"] for entry in result.log]
    assert all(abs(c - s * dense) <= 0.02 * dense for c, s in zip(costs, shares, strict=True))


def test_rounds_end_at_the_budget():
    model = net()
    recipe = spode_iterative(structure=ow.channels(example=X), steps=4, rounds=3)
    result = ow.cycle(model, recipe, lambda *_: None, data=batches(), loss=F.cross_entropy, target={"params": 0.3})
    costs = [entry["params"] for entry in result.log]
    assert costs == sorted(costs, reverse=True)
    assert abs(result.manifest["budget"]["share"] - 0.3) <= 0.003


def test_a_budget_that_is_missed_is_no_result():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    recipe = gradual_magnitude(structure=ow.channels(example=X, multiple=36), begin=0, end=2)
    run = ow.attach(model, recipe, optimizer, target={"macs": 0.5})
    train(model, run, optimizer, 2)
    with pytest.raises(ow.DensityMissed, match="the closest reachable is"):
        run.finish()
    with pytest.raises(ow.RecipeError, match="the saved state belongs to another recipe"):
        run.load_state_dict({**run.state_dict(), "target": {"params": 0.5}})


def coarse():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(864, 10)
    )


@pytest.mark.parametrize("share", [0.07, 0.19, 0.31, 0.53])
def test_a_small_model_meets_a_budget_wherever_some_choice_does(share):
    """Single channels are coarser than the tolerance, so only some pairs of widths come near."""
    model, x = coarse(), torch.zeros(1, 3, 8, 8)
    dense = count_macs(model, x)
    costs = [(a * 27 * 64 + a * b * 9 * 36 + b * 36 * 10) / dense for a in range(1, 17) for b in range(1, 25)]
    nearest = min(costs, key=lambda c: abs(c - share))
    recipe = magnitude(structure=ow.channels(example=x))
    if abs(nearest - share) <= 0.01 * share:
        told = ow.prune(model, recipe, target={"macs": share}).manifest["budget"]
        assert abs(told["share"] - share) <= 0.01 * share
    else:
        with pytest.raises(ow.DensityMissed, match=f"the closest reachable is {nearest:.4f}"):
            ow.prune(model, recipe, target={"macs": share})


class Deep(nn.Module):
    """Wide enough for its products to take longer than torch's own overhead."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(1 if i == 0 else 96, 96, 3, padding=1) for i in range(4)))
        self.head = nn.Linear(96, 10)

    def forward(self, x):
        return self.head(F.relu(self.convs(x)).mean((2, 3)))


def test_a_table_of_milliseconds():
    torch.manual_seed(0)
    model, x = Deep().eval(), torch.zeros(1, 1, 24, 24)
    structure = ow.channels(example=x)
    table = LatencyTable.of(model, structure.graph(model), structure.kinds, structure.example, (1.0, 0.5, 0.25), 3)
    times = [table("latency_ms", table.first(s)) for s in (1.0, 0.75, 0.5, 0.25)]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(table.whole[0], rel=1e-6)
    assert times[2] == pytest.approx(table.whole[1], rel=1e-6)
    assert table("latency_ms", {}) == times[0]
    few = table.checked(table.first(0.25), rounds=3)
    assert few["measured_share"] < 0.6
    assert few["table_error"] == pytest.approx(times[3] / times[0] / few["measured_share"] - 1)


def test_milliseconds_are_met_by_the_table_and_measured():
    torch.manual_seed(0)
    model, x = Deep().eval(), torch.zeros(1, 1, 24, 24)
    result = ow.prune(model, magnitude(structure=ow.channels(example=x)), target={"latency": 0.5}, dry_run=True)
    told = result.manifest["budget"]
    assert abs(told["share"] - 0.5) <= 0.005
    assert told["measured_ms"] > 0
    assert told["table_error"] == pytest.approx(told["share"] / told["measured_share"] - 1, rel=0.05, abs=0.05)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"latency": 2.0}, "must be the share of latency that stays"),
        ({"macs": 50}, "; 50 % is 0.5"),
        ({"bytes": float("inf")}, "or an amount above 100"),
        ({"latency_ms": -1}, "or milliseconds"),
        ({"latency_ms": True}, "must be the share of latency_ms"),
    ],
)
def test_targets_without_meaning(target, message):
    with pytest.raises(ow.RecipeError, match=message):
        check_target(target)


def test_budgets_that_ask_for_nothing():
    with pytest.raises(ow.RecipeError, match="leaves nothing to prune: the dense model has"):
        ow.prune(net(), magnitude(structure=ow.channels(example=X)), target={"params": 10**9})
    with pytest.raises(ow.RecipeError, match="needs a coupled structure"):
        ow.prune(net(), magnitude(structure=ow.layers(example=X)), target={"latency_ms": 3})
    assert Budget.of({"macs": 0.5}, net(), magnitude(structure=ow.channels(example=X))).share == 0.5
