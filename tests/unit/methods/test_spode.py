"""The method's arguments: several batches, densities of parameters, the paper's preset, the search."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import RecipeError
from openwork.methods import spode
from openwork.rules.spode import SEARCHED
from openwork.stats import MaskLoss


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 4)
    )


def batches(n):
    rng = torch.Generator().manual_seed(3)
    return [(torch.randn(8, 2, 8, 8, generator=rng), torch.arange(8) % 4) for _ in range(n)]


def test_several_batches_are_their_mean():
    data = batches(6)
    joined = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(data[::2], data[1::2], strict=True)]
    two = ow.prune(net(), spode(0.3, steps=3, batches=2), data=data, loss=F.cross_entropy)
    one = ow.prune(net(), spode(0.3, steps=3), data=joined, loss=F.cross_entropy)
    energies = [[row["energy"] for row in r.log[0]["path"]] for r in (two, one)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-5)
    assert two.masks.distance(one.masks) <= 2
    with pytest.raises(RecipeError, match="MaskLoss: batches must be at least 1, got 0"):
        spode(batches=0)


def test_input_channels_of_the_paper():
    """Half of the parameters in each of two neighbours is the square root of half of the channels."""
    where = ow.Select(exclude=("0.*",))
    recipe = spode(0.28, ow.InputChannel(), where=where, scope="local", density_of="parameters", steps=4)
    assert recipe.density == pytest.approx(math.sqrt(0.28))
    result = ow.prune(net(), recipe, data=batches(4), loss=F.cross_entropy)
    assert result.units["2.weight"].tolist().count(True) == math.ceil(8 * math.sqrt(0.28))
    for name, mask in result.masks.items():
        assert bool((mask == mask[:1, :, :1, :1] if mask.dim() == 4 else mask == mask[:1]).all()), name


def test_the_search_takes_the_best_radius_of_its_step():
    data = batches(4)
    result = ow.prune(net(), spode(0.3, steps=4, radius_path="search"), data=data, loss=F.cross_entropy)
    radii = [row["radius"] for row in result.log[0]["path"]]
    assert {round(r, 6) for r in radii} <= {round(1 + f * 0.1, 6) for f in SEARCHED}
    served = []

    def counted():
        for batch in data:
            served.append(1)
            yield batch

    ow.prune(net(), spode(0.3, steps=4, radius_path="search"), data=counted(), loss=F.cross_entropy)
    assert len(served) == 4
    best = min(range(len(SEARCHED)), key=lambda i: loss_after_first_step(data, SEARCHED[i]))
    assert radii[0] == pytest.approx(1 + SEARCHED[best] * 0.1)


def loss_after_first_step(data, factor):
    """The loss on the first batch under the hard mask after one step of a path of four."""
    model = net()
    share = 0.3**0.25
    recipe = spode(share, steps=1, radius=1 + factor * 0.1, floor=0)
    ow.prune(model, recipe, data=data[:1], loss=F.cross_entropy)
    with torch.no_grad():
        return float(F.cross_entropy(model(data[0][0]), data[0][1]))


def test_preset_and_refusals():
    rule = spode(preset="paper").rule
    assert (rule.density_from, rule.floor) == ("measure", 0)
    assert spode().rule.density_from == "schedule"
    assert spode(energy=MaskLoss("eval")).rule.energy.mode == "eval"
    with pytest.raises(RecipeError, match="density_of must be 'units' or 'parameters' and preset 'default' or 'paper'"):
        spode(density_of="macs")
    with pytest.raises(RecipeError, match=r"spode: density must be a kept share in \(0, 1\], got -1"):
        spode(-1, density_of="parameters")
