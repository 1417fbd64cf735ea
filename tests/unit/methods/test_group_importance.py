"""Importance of coupled units by hand: slices, aggregation, normalisation, and the criteria of structural pruning."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.now import Now
from openwork.criteria import (
    GeometricMedian,
    Grouped,
    GroupHessian,
    Magnitude,
    NormScale,
    StepGradient,
    Taylor,
    WeightTimesInput,
)
from openwork.methods import group_importance
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import FisherDiagonal, UnitImportance

X = torch.zeros(1, 2, 4, 4)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)
    )


def situation(model, **stats):
    parts, _ = ow.channels(example=X).fit_model(model, ow.Select())
    weights = {n: p.detach() for n, p in model.named_parameters()}
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    return parts, Now(parts, units, weights, **stats)


def slices(model):
    """Norms of filters, norm scales and columns (four entries of the flattened axis each) of the three channels."""
    w = {n: p.detach().double() for n, p in model.named_parameters()}
    return [w["0.weight"].flatten(1).norm(dim=1), w["1.weight"].abs(), w["4.weight"].view(5, 3, 4).norm(dim=(0, 2))]


def by_hand(over, a):
    a = torch.stack(a)
    return {
        "sum": a.sum(0),
        "mean": a.mean(0),
        "max": a.amax(0),
        "l2": a.square().sum(0).sqrt(),
        "first": a[0],
        "geometric": a.prod(0) ** (1 / 3),
    }[over]


@pytest.mark.parametrize("over", ["sum", "mean", "max", "l2", "first", "geometric"])
def test_slices_are_put_together(over):
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
    parts, now = situation(model)
    found = Grouped(Magnitude(), over)(parts["0.weight"], now)
    torch.testing.assert_close(found, by_hand(over, slices(model)))


def test_sides_biases_and_normalisation():
    model = net()
    parts, now = situation(model)
    part = parts["0.weight"]
    made, scale, read = slices(model)
    torch.testing.assert_close(Grouped(Magnitude(), "sum", sides="read")(part, now), read)
    torch.testing.assert_close(Grouped(Magnitude(), "sum", sides="made")(part, now), made + scale)
    plain = Grouped(Magnitude(), "sum")(part, now)
    biases = sum(now.weights[n].double().abs() for n in ("0.bias", "1.bias"))
    torch.testing.assert_close(Grouped(Magnitude(), "sum", biases=True)(part, now), plain + biases)
    for word, by in (("mean", plain.mean()), ("max", plain.max()), ("size", part.cost)):
        torch.testing.assert_close(Grouped(Magnitude(), "sum", word)(part, now), plain / by)
    zeros = Now(now.parts, now.units, {n: torch.zeros_like(w) for n, w in now.weights.items()})
    assert torch.equal(Grouped(Magnitude(), "sum", "max")(part, zeros), torch.zeros(3, dtype=torch.float64))


def test_scales_of_norms():
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
    parts, now = situation(model)
    torch.testing.assert_close(NormScale()(parts["0.weight"], now), torch.tensor([0.5, 2.0, 1.0]))
    with pytest.raises(ow.StructureError, match="no norm scales these units"):
        NormScale()(parts["4.weight"], now)
    result = ow.prune(
        model, group_importance(0.6, ow.channels(example=X), ow.Select(include=("0.*",)), criterion="bn_scale")
    )
    assert result.units["0.weight"].tolist() == [False, True, True]


def test_the_filter_nearest_to_all_others_goes_first():
    model = net()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 9.0])[:, None, None, None].expand(3, 2, 3, 3))
    parts, now = situation(model)
    unit = math.sqrt(18)
    torch.testing.assert_close(
        GeometricMedian()(parts["0.weight"], now), torch.tensor([9.0, 8.0, 15.0], dtype=torch.float64) * unit
    )
    with pytest.raises(ow.StructureError, match="the geometric median needs weights of two dimensions"):
        GeometricMedian()(parts["0.weight"].only(["1.weight", "0.bias"]), now)
    plain, _ = ow.structure.partition(model, ow.Filter(), ow.Select(include=("0.weight",)))
    with pytest.raises(ow.StructureError, match="the geometric median compares coupled units"):
        GeometricMedian()(plain["0.weight"], now)


def test_the_diagonal_of_the_fisher_and_what_it_says_of_channels():
    model = net().eval()
    x, y = torch.randn(6, 2, 4, 4), torch.arange(6) % 2
    recipe = group_importance(
        0.67, ow.channels(example=X), criterion="hessian", over="sum", normalise="none", batches=1
    )
    fisher = FisherDiagonal(samples=6)
    parts, _ = situation(model)
    squares = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(6):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for n, p in model.named_parameters():
            squares[n] += p.grad.square() / 6
    now = Now(parts, {}, {n: p.detach() for n, p in model.named_parameters()}, {fisher: lambda _: squares})
    now._memo["masks"] = {}
    part = parts["0.weight"]
    wanted = sum(
        (p.detach() ** 2 * squares[n]).flatten(1).sum(1) for n, p in model[0].named_parameters(prefix="0") if p.ndim > 1
    )
    found = GroupHessian(fisher)(part.only(["0.weight"]), now)
    torch.testing.assert_close(found, wanted / 2)
    result = ow.prune(model, recipe, data=[(x, y)], loss=F.cross_entropy)
    assert sum(int(u.sum()) for u in result.units.values()) == 6


def test_taylor_squares_every_batch_of_whole_units_by_itself():
    model = net().eval()
    x, y = torch.randn(8, 2, 4, 4), torch.arange(8) % 2
    batches = [(x, y), (x, 1 - y)]  # for equal outputs the second undoes what the first asks for
    wanted = 0.0
    for inputs, target in batches:
        model.zero_grad()
        F.cross_entropy(model(inputs), target).backward()
        made = {n: (p.detach() * p.grad) for n, p in model.named_parameters()}
        both = sum(made[n].flatten(1).sum(1) if made[n].ndim > 1 else made[n] for n in list(made)[:4])
        wanted = wanted + (both + made["4.weight"].view(5, 3, 4).sum((0, 2))).square()
    model.zero_grad()
    for criterion in (Taylor(UnitImportance(2)), Grouped(Taylor(UnitImportance(2)))):
        recipe = ow.Recipe("own", ow.channels(example=X), TopK(criterion), OneShot(0.66), None)
        result = ow.prune(net().eval(), recipe, data=batches, loss=F.cross_entropy)
        assert result.units["0.weight"].tolist() == (wanted != wanted.min()).tolist()
    recipe = group_importance(0.66, ow.channels(example=X), criterion="taylor", batches=2, scope="layer")
    assert (
        ow.prune(net().eval(), recipe, data=batches, loss=F.cross_entropy).units["0.weight"].tolist()
        == (wanted != wanted.min()).tolist()
    )


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "fpgm", "hessian", "random"])
def test_every_criterion_prunes_and_compacts(criterion):
    model = net().eval()
    x, y = torch.randn(16, 2, 4, 4), torch.arange(16) % 2
    recipe = group_importance(0.5, ow.channels(example=X), criterion=criterion, batches=1)
    assert ow.Recipe.from_dict(recipe.to_dict()) == recipe
    result = ow.prune(model, recipe, data=[(x, y)], loss=F.cross_entropy)
    assert sum(int(u.sum()) for u in result.units.values()) == 4
    torch.testing.assert_close(ow.compact(model, result)(x), model(x), atol=1e-5, rtol=1e-5)


def test_what_is_refused():
    with pytest.raises(ow.RecipeError, match="unknown criterion 'taylr'; did you mean 'taylor'"):
        group_importance(criterion="taylr")
    with pytest.raises(ow.RecipeError, match="Grouped: over must be one of sum, mean"):
        group_importance(over="median")
    with pytest.raises(ow.RecipeError, match="samples and batch must be at least 1"):
        FisherDiagonal(samples=0)
    assert Grouped(StepGradient()).needs_grads
    assert Grouped(WeightTimesInput()).needs
