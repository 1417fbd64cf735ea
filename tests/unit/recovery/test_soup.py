"""Sparse model soups: averages keep zeros, one copy is plain retraining, greedy never loses, rates by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import DivergedError, RecipeError
from openwork.methods import magnitude
from openwork.recovery import Soup, adaptive_rate, average_states, linear_rate

RNG = torch.Generator().manual_seed(3)
X = torch.randn(64, 6, generator=RNG)
Y = (X[:, 0] * X[:, 1] > 0).long()


def net(norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(12)] if norm else []
    return nn.Sequential(nn.Linear(6, 12), *middle, nn.ReLU(), nn.Linear(12, 2))


def pruned(norm=False):
    model = net(norm)
    return model, ow.prune(model, magnitude(0.4)).masks


def train(model, seed, steps=12):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    rng = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        at = torch.randint(0, 64, (16,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(model(X[at]), Y[at]).backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def score(model):
    return -float(F.cross_entropy(model(X), Y))


@pytest.mark.parametrize("norm", [False, True])
def test_the_soup_is_the_mean_and_as_sparse_as_its_members(norm):
    model, masks = pruned(norm)
    start = copy.deepcopy(model)
    data = [(X, Y)] if norm else None
    report = Soup(3, seed=5)(model, masks, train, evaluate=score, recalibration=data, batches=1)
    members = []
    for seed in (5, 6, 7):
        one = copy.deepcopy(start)
        with ow.hold(one, masks):
            train(one, seed)
        members.append(one)
    for name, value in model.named_parameters():
        mean = torch.stack([m.get_parameter(name).detach() for m in members]).double().mean(0)
        torch.testing.assert_close(value.detach(), mean.float(), rtol=1e-6, atol=1e-7)
        if name in masks:
            assert bool((value[~masks[name]] == 0).all())
    assert report.members == [0, 1, 2]
    assert report.recalibrated == int(norm)
    assert report.score == pytest.approx(score(model))
    assert all(d > 0 for d in report.distance)
    if not norm:
        assert report.scores == pytest.approx([score(m) for m in members])


def test_one_copy_is_plain_retraining_bit_for_bit():
    model, masks = pruned(norm=True)
    plain = copy.deepcopy(model)
    with ow.hold(plain, masks):
        train(plain, 9)
    report = Soup(1, seed=9)(model, masks, train)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    assert report.distance == [0.0]


def test_copies_of_one_state_average_to_it_and_counters_stay_integers():
    model, masks = pruned(norm=True)
    state = {n: v.bfloat16() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    found = average_states([state] * 3, masks)
    assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in state.items())


def test_a_greedy_soup_is_no_worse_than_its_best_member():
    for seed in range(4):
        model, masks = pruned()

        def uneven(copied, number, first=seed):
            train(copied, number, steps=40 if number == first else 1 + number)

        report = Soup(4, "greedy", seed)(model, masks, uneven, evaluate=score)
        assert report.score >= max(report.scores) - 1e-6
        assert report.members[0] == max(range(4), key=lambda i: report.scores[i])


def test_rounds_with_soups():
    from openwork.methods import imp

    model = net()
    rounds = ow.Cycle(model, imp(0.25, rounds=2, rewind="none"))
    while not rounds.finished:
        rounds.prune_round()
        Soup(2)(model, rounds.masks, train)
    result = rounds.finish()
    assert result.density == pytest.approx(0.25, abs=0.01)
    assert all(bool((model.get_parameter(n)[~m] == 0).all()) for n, m in result.masks.items())


def test_rates_by_hand():
    assert linear_rate(5, 100, 0.4) == pytest.approx(0.2)  # half of the rise
    assert linear_rate(55, 100, 0.4) == pytest.approx(0.2)  # half of the fall
    assert adaptive_rate(0.5, 0.25, 1, 100, 0.1) == 0.1  # 0.5 / 0.5 = 1
    assert adaptive_rate(0.1, 0.25, 1, 100, 0.1) == pytest.approx(0.02)
    assert adaptive_rate(0.01, 0.25, 30, 100, 0.1) == pytest.approx(0.03)  # not below 30 of 100 epochs


def apart():
    """Two models pruned apart, and the mask of the first."""
    one, masks = pruned()
    torch.manual_seed(4)
    other = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    ow.prune(other, magnitude(0.4))
    return [one.state_dict(), other.state_dict()], masks


def explode(model, seed):
    with torch.no_grad():
        model[0].bias.fill_(float("nan"))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Soup(0), RecipeError, "Soup: replicas must be at least 1, got 0"),
        (lambda: Soup(2, "median"), RecipeError, "Soup: merge must be 'uniform' or 'greedy'"),
        (lambda: Soup(2, "greedy")(*pruned(), train), RecipeError, "needs evaluate=, a score of a model"),
        (lambda: Soup(2)(*pruned(True), train), RecipeError, "has BatchNorm layers; pass recalibration="),
        (lambda: Soup(2)(*pruned(), lambda m, s: train(m, 0)), RecipeError, "all copies came out equal"),
        (lambda: Soup(2)(*pruned(), explode), DivergedError, "copy 0 of the soup holds NaN or infinity"),
        (lambda: average_states([], {}), RecipeError, "average_states needs at least one state"),
        (lambda: average_states(*apart()), RecipeError, "0.weight of state 1 has .* weights outside the common mask"),
        (lambda: average_states([net().state_dict(), {}], {}), RecipeError, "state 1 and state 0 differ in 0.bias"),
        (lambda: average_states([{}], {"w": torch.ones(1).bool()}), RecipeError, "which the states do not have"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
