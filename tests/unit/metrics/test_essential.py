"""Knees of curves whose break is known, masks whose cosine is known, and a curve measured on a real model."""

import copy
import math

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.errors import DataError
from openwork.methods import magnitude
from openwork.metrics import (
    Curve,
    abrupt,
    bisected,
    essential_sparsity,
    induced_sparsity,
    mask_cosine,
    sparsity_curve,
)

LEVELS = tuple(i / 10 for i in range(10))


def broken(at, slope=2.0):
    return Curve(LEVELS, tuple(1.0 - max(0.0, s - at) * slope for s in LEVELS))


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_all_three_estimates_return_the_break(at):
    found = essential_sparsity(broken(at))
    assert (found.tolerance, found.chord, found.segments) == (at, at, at)
    assert found.knee
    assert found.sharpness == math.inf or found.sharpness > 1e6


def test_the_tolerance_counts_all_earlier_levels_and_grows_with_the_tolerance():
    scores = (1.0, 0.999, 0.9, 0.999, 0.5, 0.1)
    curve = Curve(LEVELS[:6], scores)
    levels = [essential_sparsity(curve, t).tolerance for t in (0.0, 0.01, 0.2, 0.6, 1.0)]
    assert levels == [0.0, 0.1, 0.3, 0.4, 0.5]


def test_noise_of_seeds_widens_the_tolerance():
    curve = Curve(LEVELS[:4], (1.0, 0.97, 0.6, 0.2), (0.0, 0.03, 0.0, 0.0))
    assert essential_sparsity(curve).allowed == pytest.approx(0.06)
    assert essential_sparsity(curve).tolerance == 0.1


def test_noise_behind_the_drop_widens_nothing():
    curve = Curve(LEVELS[:4], (1.0, 0.995, 0.6, 0.2), (0.0, 0.001, 0.002, 0.5))
    assert (essential_sparsity(curve).allowed, essential_sparsity(curve).tolerance) == (0.01, 0.1)
    scattered = Curve(LEVELS[:4], (1.0, 0.97, 0.6, 0.2), (0.02, 0.0, 0.0, 0.0))  # of the dense model
    assert (essential_sparsity(scattered).allowed, essential_sparsity(scattered).tolerance) == (0.04, 0.1)


def test_bisection_halves_the_interval_that_holds_the_drop():
    asked = []

    def evaluate(sparsity, seed):
        asked.append(sparsity)
        return 1.0 - max(0.0, sparsity - 0.34)

    curve = sparsity_curve(evaluate, LEVELS, seeds=2)
    asked.clear()
    finer = bisected(evaluate, curve, 0.001, 3)
    assert asked == [0.35, 0.35, 0.325, 0.325, 0.3375, 0.3375]
    assert finer.sparsity == tuple(sorted({*LEVELS, *asked}))
    assert essential_sparsity(finer, 0.001).tolerance == 0.3375
    assert finer.seeds[0.325] == (1.0, 1.0)
    flat = sparsity_curve(lambda *_: 1.0, LEVELS)
    assert bisected(evaluate, flat, 0.001, 3) is flat


def test_flat_and_straight_curves_have_no_knee():
    flat = essential_sparsity(Curve(LEVELS, (0.7,) * 10))
    assert (flat.tolerance, flat.knee) == (0.9, False)
    assert not essential_sparsity(Curve(LEVELS, tuple(2.0**-i for i in range(10)))).knee


def test_a_measured_curve():
    torch.manual_seed(0)
    model = nn.Linear(40, 8)
    model.weight.data[:, 10:] *= 0.001  # three quarters are free
    x = torch.randn(64, 40)
    want = model(x).detach()

    def evaluate(sparsity, seed):
        twin = copy.deepcopy(model)
        if sparsity:
            ow.prune(twin, magnitude(1 - sparsity))
        return -float((twin(x).detach() - want).square().mean() / want.var())

    curve = sparsity_curve(evaluate, seeds=2)
    found = essential_sparsity(curve)
    assert {found.tolerance, found.segments, found.chord} <= {0.7, 0.8}  # the grid of tenths lies around 0.75
    assert found.knee
    assert curve.score[0] == 0
    assert curve.std == (0.0,) * 10


def test_cosines_and_induced_sparsity():
    one = torch.tensor([True, True, False, False])
    assert mask_cosine(one, one) == 1
    assert mask_cosine(one, ~one) == 0
    assert mask_cosine(one, torch.zeros(4, dtype=torch.bool)) == 0
    assert mask_cosine(one, torch.tensor([True, False, False, False])) == pytest.approx(1 / math.sqrt(2))
    steps = [{"a": torch.full((10,), 1.0), "b": torch.ones(30)} for _ in range(3)]
    steps[1]["a"][:5] = 0.01
    steps[2]["b"][:15] = -0.01
    found = induced_sparsity(steps, 0.1)
    assert (found["a"], found["total"]) == ([0, 0.5, 0], [0, 0.125, 0.375])
    assert abrupt([0.0, 0.01, 0.02, 0.5, 0.51]) == (3, pytest.approx(48))


def test_refused():
    for call, message in (
        (lambda: essential_sparsity(Curve((0.0, 0.1, 0.2), (1.0, 1.0, 1.0))), "needs at least 4 levels, got 3"),
        (lambda: essential_sparsity(broken(0.5), -1), "tolerance must not be negative, got -1"),
        (lambda: Curve((0.0, 0.1), (1.0,)), "a curve needs one score per sparsity, sparsities ascending"),
        (lambda: Curve((0.0, 0.1), (1.0, math.nan)), r"a curve needs finite scores, got \[1.0, nan\]"),
        (lambda: mask_cosine(torch.ones(2), torch.ones(2)), "mask_cosine needs two bool masks of one shape"),
        (lambda: induced_sparsity([], 0.1), "induced_sparsity needs checkpoints and a positive threshold"),
        (lambda: abrupt([1.0, 2.0]), "abrupt needs at least 3 values, got 2"),
    ):
        with pytest.raises(DataError, match=message):
            call()
