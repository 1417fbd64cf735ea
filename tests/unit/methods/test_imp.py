"""IMP: nested masks, exact counts, rewinding bit for bit."""

import copy
import math

import pytest
import torch
from tests.unit.methods.scoring import kept_by_hand
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import RecipeError
from openwork.methods import imp


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 14), nn.BatchNorm1d(14), nn.ReLU(), nn.Linear(14, 4))


def train(model, steps=6, seed=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = torch.randn(12, 9, generator=rng), torch.randint(0, 4, (12,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("rewind", ["weights", "lr", "none"])
def test_rounds(rewind):
    model = net()
    point = copy.deepcopy(model.state_dict())
    train(model, seed=9)
    rounds = ow.Cycle(model, imp(0.3, rounds=4, rewind=rewind), rewind_to=point)
    total, old = 9 * 14 + 14 * 4, None
    while not rounds.finished:
        trained = copy.deepcopy(model.state_dict())
        told = rounds.prune_round()
        masks = dict(rounds.masks)
        density = 0.3 ** (told.index / 4)
        assert sum(int(m.sum()) for m in masks.values()) == math.ceil(density * total - 1e-9)
        assert told == ow.Round(told.index, 4, pytest.approx(density), rewind)
        if old is not None:
            assert all(bool((old[n] | ~masks[n]).all()) for n in masks)
        # by hand: the largest trained survivors of the whole model
        values = torch.cat(
            [trained[n].abs().flatten().masked_fill(~(old[n] if old else masks[n] | True).flatten(), -1) for n in masks]
        )
        chosen = torch.cat([m.flatten() for m in masks.values()]).nonzero().flatten().tolist()
        assert set(chosen) == kept_by_hand(values.tolist(), len(chosen))
        start = point if rewind == "weights" else trained
        for name, value in model.state_dict().items():
            want = start[name] * masks[name] if name in masks else start[name]
            assert torch.equal(value, want), name
        with ow.hold(model, rounds.masks):
            train(model, seed=told.index)
        assert all(bool((model.state_dict()[n][~m] == 0).all()) for n, m in masks.items())
        old = masks
    assert rounds.finish().counts.kept == math.ceil(0.3 * total - 1e-9)
    with pytest.raises(RecipeError, match="all 4 rounds are done"):
        rounds.prune_round()


def test_the_default_rate_prunes_a_fifth_of_the_survivors():
    for density, rounds in ((0.8, 1), (0.64, 2), (0.1, 11), (0.028, 17), (1.0, 1)):
        recipe = imp(density)
        assert recipe.schedule.rounds == rounds
        left = recipe.schedule(1).share
        assert left >= 0.8 - 1e-9
    assert imp(0.1, rate=0.5).schedule.rounds == 4
    assert imp(0.1, rounds=3).schedule(3).share == 0.1


def test_rewinding_needs_a_point_of_this_model():
    model = net()
    with pytest.raises(RecipeError, match="rewinding weights needs rewind_to="):
        ow.cycle(model, imp(0.5), lambda m, r: None)
    with pytest.raises(RecipeError, match="rewind_to must be a state dict of this model"):
        ow.cycle(model, imp(0.5), lambda m, r: None, rewind_to=nn.Linear(9, 14).state_dict())


def test_the_rewind_point_is_a_copy():
    model = net()
    point = model.state_dict()  # the live tensors
    want = copy.deepcopy(point)
    rounds = ow.Cycle(model, imp(0.5, rounds=2), rewind_to=point)
    train(model)
    rounds.prune_round()
    assert all(torch.equal(model.state_dict()[n], want[n]) for n in want if n not in rounds.masks)
    assert torch.equal(model[0].weight, want["0.weight"] * rounds.masks["0.weight"])


def test_levels_that_must_empty_a_layer_are_refused_before_training():
    with pytest.raises(
        RecipeError,
        match=r"imp: density 0.005 after 24 rounds at rate 0.2 keeps 1 of 182 units in 2 tensors, so one wo",
    ):
        ow.cycle(net(), imp(0.005), lambda m, r: pytest.fail("trained"))
