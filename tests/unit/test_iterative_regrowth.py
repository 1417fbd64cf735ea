"""Iterative SpODE judges pruned weights by the value they had, so that they can return in a later round."""

import torch
from torch.nn import functional as F

import openwork as ow
from openwork.methods import imp, spode_iterative


def rounds(recipe):
    data = ow.load_data("digits")
    torch.manual_seed(0)
    model = ow.build_model("mlp", data.input_shape, data.classes, hidden=(32,))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = [(data.x_train[:512], data.y_train[:512])]
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0][0]), batch[0][1]).backward()
        optimizer.step()
    cycle, before, back = ow.Cycle(model, recipe, data=batch, loss=F.cross_entropy), None, 0
    while not cycle.finished:
        cycle.prune_round()
        masks = cycle.masks
        params = dict(model.named_parameters())
        assert all((params[n][~m] == 0).all() for n, m in masks.items())
        if before is not None:
            back += sum(int((m & ~before[n]).sum()) for n, m in masks.items())
            assert all((params[n][m & ~before[n]] != 0).all() for n, m in masks.items())
        for name, values in (cycle._values or {}).items():  # make what was pruned worth having again
            values[~masks[name]] *= 10
        before = masks
    cycle.finish()
    return back


def test_units_come_back_between_rounds():
    assert rounds(spode_iterative(density=0.05, rounds=4, steps=20, radius=2.0)) > 0


def test_magnitude_rounds_are_nested():
    assert rounds(imp(density=0.05, rounds=4, rewind="none")) == 0
