"""random-pruning.md, items 1 to 3, and the ERK example of dst-primitives.md."""

import math

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.allocation import erk_densities
from openwork.errors import RecipeError
from openwork.methods import random

RESNET20 = {
    "stem": (16, 3, 3, 3),
    **{f"one.{i}": (16, 16, 3, 3) for i in range(6)},
    "two.0": (32, 16, 3, 3),
    **{f"two.{i}": (32, 32, 3, 3) for i in range(1, 6)},
    "three.0": (64, 32, 3, 3),
    **{f"three.{i}": (64, 64, 3, 3) for i in range(1, 6)},
    "fc": (10, 64),
}


def total(shapes, densities):
    return math.fsum(densities[n] * math.prod(s) for n, s in shapes.items())


@pytest.mark.parametrize("kernel", [True, False], ids=["erk", "er"])
@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_the_budget_is_met(density, kernel):
    found = erk_densities(RESNET20, density, kernel=kernel)
    size = sum(math.prod(s) for s in RESNET20.values())
    assert total(RESNET20, found) == pytest.approx(density * size, rel=1e-9)
    assert all(0 < d <= 1 for d in found.values())
    if density == 1.0:
        assert found == pytest.approx(dict.fromkeys(RESNET20, 1.0), abs=1e-12)


def test_the_order_of_layers_does_not_matter():
    back = dict(reversed(RESNET20.items()))
    found, again = erk_densities(RESNET20, 0.2), erk_densities(back, 0.2)
    assert all(found[n] == pytest.approx(again[n], rel=1e-12) for n in found)


def test_equal_layers_get_equal_densities():
    for shape in ((12, 7), (8, 4, 3, 3)):
        assert erk_densities(dict.fromkeys("abc", shape), 0.3) == pytest.approx(dict.fromkeys("abc", 0.3), rel=1e-12)


@pytest.mark.parametrize(
    ("density", "stem", "one", "two", "three", "fc"),
    [(0.05, 0.517, 0.147, 0.068, 0.033, 1), (0.2, 1, 0.618, 0.285, 0.136, 1), (0.5, 1, 1, 0.776, 0.371, 1)],
)
def test_resnet20_has_the_densities_of_the_sheet(density, stem, one, two, three, fc):
    found = erk_densities(RESNET20, density)
    want = {"stem": stem, "one.0": one, "two.1": two, "three.1": three, "fc": fc}
    assert {n: round(found[n], 3) for n in want} == want


@pytest.mark.parametrize(
    ("sparsity", "want"),
    [(0.8, (1, 0.2990, 0.1412, 1)), (0.9, (1, 0.1201, 0.0567, 1)), (0.95, (0.7520, 0.0552, 0.0261, 0.5444))],
)
def test_the_worked_example_of_rigl(sparsity, want):
    shapes = {"a": (16, 1, 3, 3), "b": (32, 16, 3, 3), "c": (64, 32, 3, 3), "d": (10, 64)}
    found = erk_densities(shapes, 1 - sparsity)
    assert tuple(round(d, 4) for d in found.values()) == want


def test_the_fixed_point_is_min_one_and_eps_by_bisection():
    rng = torch.Generator().manual_seed(0)
    for case in range(100):
        draw = torch.randint(1, 40, (4, 4), generator=rng).tolist()
        shapes = {str(i): (s[0], s[1], s[2] % 3 + 1, s[3] % 3 + 1) for i, s in enumerate(draw)}
        density = 0.02 + 0.96 * float(torch.rand((), generator=rng))
        raw = {n: sum(s) / math.prod(s) for n, s in shapes.items()}
        low, high = 0.0, 1 / min(raw.values())
        for _ in range(200):
            eps = (low + high) / 2
            reached = total(shapes, {n: min(1.0, eps * r) for n, r in raw.items()})
            low, high = (eps, high) if reached < density * sum(map(math.prod, shapes.values())) else (low, eps)
        want = {n: min(1.0, low * r) for n, r in raw.items()}
        assert erk_densities(shapes, density) == pytest.approx(want, rel=1e-9), case


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 10))


def test_masks_have_the_shares_of_the_allocation():
    model = conv_net()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim > 1}
    want = erk_densities(shapes, 0.3)
    result = ow.prune(model, random(0.3))
    for name, mask in result.masks.items():
        assert abs(int(mask.sum()) - want[name] * mask.numel()) <= 1 + 1e-9
    assert result.counts.kept == math.ceil(0.3 * sum(map(math.prod, shapes.values())) - 1e-9)


def test_positions_are_uniform():
    """Each of 40 weights is kept in a quarter of 400 draws: 100, standard deviation 8.7; five of them are 43."""
    counts = torch.zeros(40)
    for seed in range(400):
        counts += ow.prune(nn.Linear(40, 1), random(0.25, scope="layer"), seed=seed, dry_run=True).masks["weight"][0]
    assert float(counts.sum()) == 4000
    assert float((counts - 100).abs().max()) < 43


def test_a_budget_below_one_unit_a_layer_is_refused():
    with pytest.raises(RecipeError, match="cannot be shared with at_least=1 in every tensor"):
        ow.prune(conv_net(), random(0.0005))
