"""precropping-pai.md: the closed form, the fit of widths, exact budgets, sources, the scale of cropped weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.allocation.crop import PreCrop, equal_numbers, widths
from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.errors import MissingStatistic, RecipeError
from openwork.graph import count_macs
from openwork.graph.example import Example
from openwork.methods import precrop
from openwork.stats.work import LayerMacs
from openwork.structure import partition

SIZES = {"a": 100, "b": 1000, "c": 5000, "d": 20000, "e": 400}


def test_the_closed_form_meets_the_budget_and_beats_random_allocations():
    found = equal_numbers(SIZES, 0.2)
    total = sum(SIZES.values())
    assert sum(n * found[k] for k, n in SIZES.items()) == pytest.approx(0.2 * total, abs=1e-6)
    best = sum(math.log(p) for p in found.values())
    assert best == pytest.approx(-3.32, abs=0.01)
    n = torch.tensor([*SIZES.values()], dtype=torch.float64)
    p = torch.rand(50_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = (p * (0.2 * total / (p @ n))[:, None]).clamp(max=1)  # feasible: scaled to the budget, then cut at 1
    assert float(p.log().sum(1).max()) <= best
    scaled = equal_numbers({k: 7 * v for k, v in SIZES.items()}, 0.2)
    assert all(scaled[k] == pytest.approx(found[k], rel=1e-12) for k in SIZES)
    assert set(equal_numbers(SIZES, 1.0).values()) == {1.0}
    numbers = {round(p * SIZES[k], 6) for k, p in found.items() if p < 1}
    assert len(numbers) == 1


def test_widths_of_a_consistent_chain_are_found():
    """p_l = r_(l-1) r_l with the ends whole: the least squares are zero."""
    r = torch.tensor([0.5, 0.8, 0.25], dtype=torch.float64)
    ends = torch.cat([torch.ones(1), r, torch.ones(1)]).double()
    exponents = torch.zeros(4, 3)
    for layer in range(4):
        for group in (layer - 1, layer):
            if 0 <= group < 3:
                exponents[layer, group] = 1
    found = widths(exponents, torch.tensor([9.0, 100.0, 40.0, 7.0]), ends[:-1] * ends[1:])
    torch.testing.assert_close(found, r, rtol=1e-10, atol=0)


def test_widths_are_the_best_below_one():
    torch.manual_seed(0)
    for _ in range(5):
        exponents = (torch.rand(6, 4) > 0.5).double()
        exponents[:4] += torch.eye(4)  # every group lies somewhere
        weights, densities = torch.rand(6) * 100 + 1, torch.rand(6) * 0.9 + 0.1
        found = widths(exponents, weights, densities)
        assert bool((found <= 1).all())
        x = torch.zeros(4, dtype=torch.float64)
        for _ in range(3000):  # projected gradient, for the same problem
            slope = exponents.T @ (weights.double() * (exponents @ x - densities.double().log()))
            x = (x - slope / (weights.double() @ exponents.sum(1).square())).clamp(max=0)

        def error(log_r, e=exponents, w=weights, p=densities):
            return float((w.double() * (e @ log_r - p.double().log()).square()).sum())

        assert error(found.log()) <= error(x) + 1e-6 * (1 + error(x))


class Net(nn.Module):
    """A residual trunk, inner channels, a depthwise convolution, flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(1, 48, 3, padding=1), nn.Conv2d(48, 80, 3, padding=1)
        self.b, self.depth = nn.Conv2d(80, 48, 3, padding=1), nn.Conv2d(48, 48, 3, groups=48)
        self.point, self.norm = nn.Conv2d(48, 64, 1), nn.BatchNorm2d(64)
        self.fc, self.head = nn.Linear(64 * 9, 100), nn.Linear(100, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.b(F.relu(self.a(x)))
        x = F.relu(self.norm(self.point(self.depth(x))))
        return self.head(F.relu(self.fc(F.max_pool2d(x, 2).flatten(1))))


@pytest.fixture(scope="module")
def cropped():
    """The network cropped to a fifth of its parameters."""
    torch.manual_seed(0)
    model, x = Net().eval(), torch.zeros(2, 1, 8, 8)
    result = ow.prune(model, precrop(structure=ow.channels(example=x)), target={"params": 0.2})
    return model, x, result, ow.compact(model, result)


def test_budget_in_parameters_is_met_and_large_layers_are_cut_most(cropped):
    model, x, result, small = cropped
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert after / before == pytest.approx(0.2, rel=0.01)
    kept = {n: float(u.double().mean()) for n, u in result.units.items()}
    assert kept["fc.weight"] < kept["stem.weight"]
    ow.verify(small, model, x)


def test_the_cropped_networks_macs_equal_those_of_hooks(cropped):
    _, x, _, small = cropped
    total = 0

    def count(layer, inputs, out):
        nonlocal total
        total += out.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    small(x)
    for hook in hooks:
        hook.remove()
    assert total == count_macs(small, x)


def test_work_of_every_weight_is_counted():
    model, x = Net().eval(), torch.zeros(2, 1, 8, 8)
    parts, _ = partition(model, ow.channels(example=x), ow.Select())
    found = LayerMacs(Example.of(x)).measure(Measuring(model, parts, Feed(None, torch.device("cpu")), None))
    assert sum(found.values()) == count_macs(model, x)
    recipe = precrop(0.5, ow.channels(example=x), budget="macs")
    result = ow.prune(model, recipe)
    assert sum(int(u.sum()) for u in result.units.values()) == math.ceil(0.5 * (48 + 80 + 64 + 100))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.grid = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(torch.ones(1, 8))

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)) * self.grid)

    x = torch.zeros(2, 3)
    with pytest.raises(MissingStatistic, match=r"grid: multiplies no input in the forward pass of the example"):
        ow.prune(Scaled(), precrop(0.5, ow.channels(example=x), budget="macs"))


@pytest.mark.parametrize("source", ["synflow", "snip", "magnitude"])
def test_other_sources_give_other_widths_at_the_same_total(source):
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(8, 1, 8, 8)
    recipe = precrop(0.4, ow.channels(example=x), source=source, rounds=5)
    given = {"data": [(x, torch.arange(8) % 4)], "loss": F.cross_entropy} if source == "snip" else {}
    result = ow.prune(model, recipe, **given)
    assert sum(int(u.sum()) for u in result.units.values()) == math.ceil(0.4 * (48 + 80 + 64 + 100))
    assert all(bool(u.any()) for u in result.units.values())
    assert ow.Recipe.from_dict(recipe.to_dict()) == recipe


def test_cropped_weights_have_the_scale_of_a_fresh_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 2000), nn.ReLU(), nn.Linear(2000, 50))
    result = ow.prune(model, precrop(0.1, ow.channels(example=torch.zeros(2, 16))))
    small = ow.compact(model, result)
    fresh = nn.Linear(200, 50)
    assert small[2].weight.shape == fresh.weight.shape
    drawn, wanted = (float(m.weight.detach().std()) for m in (small[2], fresh))
    assert drawn == pytest.approx(wanted, rel=0.03)
    whole = ow.prune(model, precrop(1.0, ow.channels(example=torch.zeros(2, 16))))
    assert all(bool(u.all()) for u in whole.units.values())


def test_what_cannot_be_done_is_refused():
    x = torch.zeros(2, 1, 8, 8)
    for call, message in (
        (lambda: equal_numbers(SIZES, 0.0), r"equal_numbers: share must lie in \(0, 1\], got 0"),
        (lambda: precrop(source="grasp"), r"precrop: source must be one of closed_form, synflow, snip, magnitude"),
        (lambda: precrop(budget="macs"), r"precrop: a budget of macs needs ow.channels\(example=x\)"),
        (
            lambda: ow.prune(Net(), precrop(0.01, ow.channels(example=x))),
            r"PreCrop: one unit in each of 4 groups needs 4 units, but 3",
        ),
        (
            lambda: ow.prune(Net(), precrop(0.5, ow.Element(per="row"))),
            r"PreCrop gives layers unequal shares, but the structure fixes them",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            call()
    assert PreCrop().needs == frozenset()
