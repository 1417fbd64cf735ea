"""Layer shares: ERK by hand, against bisection and for known networks; random masks with these shares."""

import math

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.allocation import FixedEnds, erk_densities, fixed_densities
from openwork.criteria import Random
from openwork.errors import RecipeError
from openwork.methods import random
from openwork.rules.topk import TopK
from openwork.schedules import OneShot

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
def test_resnet20_has_known_densities(density, stem, one, two, three, fc):
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


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
def test_fixed_ends_leave_the_budget_exact(density):
    size = sum(math.prod(s) for s in RESNET20.values())
    plus = fixed_densities(RESNET20, density, {"fc": 1.0})
    assert total(RESNET20, plus) == pytest.approx(density * size, rel=1e-9)
    rest = {n: s for n, s in RESNET20.items() if n != "fc"}
    alone = erk_densities(rest, (density * size - 640) / (size - 640))
    assert plus == pytest.approx({**alone, "fc": 1.0}, rel=1e-12)
    last = max(density, 0.2)
    equal = fixed_densities(RESNET20, density, {"stem": 1.0, "fc": last}, power=0.0)
    want = (density * size - 432 - last * 640) / (size - 432 - 640)
    assert equal == pytest.approx({**dict.fromkeys(rest, want), "stem": 1.0, "fc": last}, rel=1e-9)


def test_random_masks_with_fixed_ends():
    size = 3 * 8 * 9 + 8 * 16 * 9 + 160
    for scope, first, last in (("erk+", None, 1.0), ("layer+", 1.0, 0.2)):
        result = ow.prune(conv_net(), random(0.2, scope=scope))
        kept = {n: int(m.sum()) for n, m in result.masks.items()}
        assert kept["3.weight"] == last * 160
        assert first is None or kept["0.weight"] == first * 216
        assert sum(kept.values()) == math.ceil(0.2 * size)
        assert ow.Recipe.from_dict(result.recipe.to_dict()) == result.recipe
    assert ow.prune(conv_net(), random(0.6, scope="layer+")).masks["3.weight"].float().mean() == pytest.approx(
        0.6, abs=0.01
    )


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: ow.prune(conv_net(), random(0.1, scope="erk+")),
            r"density 0.1 cannot be met: the tensors of fixed density alone are 0.1047 of the model, and with all",
        ),
        (lambda: fixed_densities({"a": (4, 4), "b": (4, 4)}, 0.9, {"a": 0.2}), "with all others dense it is 0.6; take"),
        (lambda: FixedEnds(first=1.5), "FixedEnds: density must be a kept share in"),
        (lambda: FixedEnds(at_least=-1), "FixedEnds: at_least must not be negative, got -1"),
        (lambda: random(0.5, ow.NM(2, 4), scope="erk+"), "scope must be 'layer', 'global' or 'erk', got 'erk\\+'"),
        (
            lambda: ow.prune(
                conv_net(), ow.Recipe("r", ow.Element(per="row"), TopK(Random(), FixedEnds()), OneShot(0.5))
            ),
            "FixedEnds: a structure with its own regions fixes its densities; use Uniform",
        ),
    ],
)
def test_ends_that_cannot_be(act, message):
    with pytest.raises(RecipeError, match=message):
        act()


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
