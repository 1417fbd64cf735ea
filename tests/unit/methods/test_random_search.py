"""random-search items: exact counts, the best of what was drawn, all choices of a small space."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import DivergedError, RecipeError
from openwork.methods import random, random_search
from openwork.metrics import expected_best


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def batch(n=16):
    rng = torch.Generator().manual_seed(2)
    return torch.randn(n, 6, generator=rng), torch.randint(0, 3, (n,), generator=rng)


def search(model, **options):
    given = {"density": 0.5, "structure": ow.Row(), "where": ow.Select(include=("0.weight",))}
    return ow.prune(model, random_search(**{**given, **options}), data=[batch()], loss=F.cross_entropy)


def test_the_mask_is_the_one_of_the_lowest_loss():
    model = small()
    result = search(model, draws=5, density=0.25)
    told = result.log[-1]["search"]
    x, y = batch()
    assert F.cross_entropy(model(x), y).item() == pytest.approx(min(told["losses"]), rel=1e-6)
    assert int(result.units["0.weight"].sum()) == 1


def test_a_small_space_is_tried_whole():
    model, (x, y) = small(), batch()
    weight = model[0].weight.detach().clone()
    result = search(model, draws=6)
    losses = []
    for a in range(4):
        for b in range(a + 1, 4):
            rows = torch.tensor([i in (a, b) for i in range(4)])[:, None]
            other = small()
            other[0].weight.data = weight * rows
            losses.append(F.cross_entropy(other(x), y).item())
    assert result.log[-1]["search"]["losses"] == pytest.approx(losses, rel=1e-6)
    assert F.cross_entropy(model(x), y).item() == pytest.approx(min(losses), rel=1e-6)


def test_more_draws_are_never_worse():
    best = [min(search(small(), structure=ow.Element(), draws=d).log[-1]["search"]["losses"]) for d in (1, 4, 16)]
    assert best[0] >= best[1] >= best[2]


def test_one_draw_is_the_random_baseline():
    where = ow.Select(include=("0.weight",))
    one = search(small(), structure=ow.Element(), draws=1).masks
    base = ow.prune(small(), random(density=0.5, where=where, scope="layer")).masks
    assert one.distance(base) == 0


def test_channels_are_drawn_with_everything_behind_them():
    model, (x, y) = small(), batch()
    recipe = random_search(density=0.5, structure=ow.channels(example=x), draws=3)
    result = ow.prune(model, recipe, data=[(x, y)], loss=F.cross_entropy)
    compacted = ow.compact(model, result, example=x)
    assert compacted[0].out_features == 2
    torch.testing.assert_close(compacted(x), model(x))


def test_refusals():
    with pytest.raises(RecipeError, match="RandomSearch: draws must be at least 1, got 0"):
        random_search(draws=0)
    with pytest.raises(RecipeError, match="LossAtMasks: batches must be at least 1, got 0"):
        random_search(batches=0)
    with pytest.raises(DivergedError, match="RandomSearch: none of 3 masks has a finite loss; check the weights"):
        model = small()
        ow.prune(
            model,
            random_search(density=0.5, draws=3),
            data=[batch()],
            loss=lambda out, y: F.cross_entropy(out, y) * math.inf,
        )


@pytest.mark.parametrize("budget", [1, 2, 5, 7])
def test_expected_best_equals_enumeration(budget):
    from itertools import combinations

    losses = torch.rand(7, generator=torch.Generator().manual_seed(3)).tolist()
    every = [min(some) for some in combinations(losses, budget)]
    assert expected_best(losses, budget) == pytest.approx(sum(every) / len(every), rel=1e-12)


def test_expected_best_refusals():
    with pytest.raises(RecipeError, match="expected_best: budget must be 1 to 2, the number of losses, got 3"):
        expected_best([1.0, 2.0], 3)
    with pytest.raises(RecipeError, match="expected_best: a loss is NaN; leave such draws out"):
        expected_best([1.0, math.nan], 1)
