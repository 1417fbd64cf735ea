"""The cubic curve, exact counts, and what becomes of masked weights."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.methods import gradual_magnitude

TABLE = (0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9)


def descend(model, run, optimizer, steps, target=0.3):
    for _ in range(steps):
        optimizer.zero_grad()
        sum(((p - target) ** 2).sum() for p in model.parameters()).backward()
        optimizer.step()


def test_the_curve_has_the_values_of_the_paper():
    schedule = gradual_magnitude(0.1, begin=40, end=140, every=10).schedule
    assert [round(1 - schedule(t).share, 4) for t in range(40, 141, 10)] == list(TABLE)
    assert all(schedule(t).update == (40 <= t <= 140 and t % 10 == 0) for t in range(300))
    assert schedule(39).share == 1.0
    assert schedule(141).share == pytest.approx(0.1, abs=0)
    slope = (schedule.share(1.0) - schedule.share(1 - 1e-4)) / 1e-4
    assert abs(slope) < 1e-6  # flat at the end


def test_the_last_update_comes_even_when_the_steps_do_not_divide():
    schedule = gradual_magnitude(0.2, begin=0, end=25, every=10).schedule
    assert [t for t in range(60) if schedule(t).update] == [0, 10, 20, 25]


def test_layer_counts_are_rounded_to_the_nearest_and_at_least_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 11), nn.Linear(11, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = ow.attach(model, gradual_magnitude(0.07, begin=1, end=8, every=2), optimizer)
    for step in range(1, 9):
        descend(model, run, optimizer, 1)
        share = run.recipe.schedule(step).share
        if run.recipe.schedule(step).update:
            for name, n in (("0.weight", 15), ("1.weight", 33), ("2.weight", 11)):
                assert run.masks.kept(name) == max(1, int(n * share + 0.5)), (step, name)
    zeros = [int((m.weight == 0).sum()) for m in model]
    assert zeros == [15 - 1, 33 - 2, 11 - 1]
    assert run.finish().counts.kept == 4


def test_zeroed_weights_stay_zero_between_updates_and_get_no_gradient():
    model = nn.Linear(6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    run = ow.attach(model, gradual_magnitude(0.3, begin=1, end=4, every=1), optimizer)
    descend(model, run, optimizer, 4)
    mask = run.masks["weight"]
    for _ in range(5):
        descend(model, run, optimizer, 1)
        assert bool((model.weight[~mask] == 0).all())
        assert bool((model.weight.grad[~mask] == 0).all())
        assert bool((optimizer.state[model.weight]["momentum_buffer"][~mask] == 0).all())


def test_frozen_weights_keep_their_value_and_may_return():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    recipe = gradual_magnitude(0.5, begin=1, end=6, every=5, masked="freeze", power=1e-9)
    run = ow.attach(model, recipe, optimizer)
    weight = model.parametrizations.weight.original

    def step(gradient):
        weight.grad = torch.tensor([gradient])
        optimizer.step()

    step([0.0, 0.0, 0.0, 0.0])
    assert run.density == 1.0
    for _ in range(5):
        step([0.0, 0.0, 0.0, 0.0])
    assert run.masks["weight"].tolist() == [[True, True, False, False]]
    assert model.weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]
    assert weight.tolist() == [[4.0, 3.0, 2.0, 1.0]]
    model.weight.sum().backward()
    assert weight.grad.tolist()[0][2:] == [0.0, 0.0]
    assert run.finish().masks["weight"].tolist() == [[True, True, False, False]]
    assert model.weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]
    # a frozen weight returns when the kept ones fall below the value it was frozen at
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    run = ow.attach(model, gradual_magnitude(0.5, begin=1, end=3, every=1, masked="freeze", power=1e-9), optimizer)
    weight = model.parametrizations.weight.original
    for gradient in ([0.0] * 4, [0.0] * 4, [3.5, 0.0, 0.0, 0.0]):
        step(gradient)
    assert run.finish().masks["weight"].tolist() == [[False, True, True, False]]
    assert model.weight.tolist() == [[0.0, 3.0, 2.0, 0.0]]
