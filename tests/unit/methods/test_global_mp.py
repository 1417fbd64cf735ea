"""Global MP: one ranking, and the floor of every layer."""

import pytest
import torch
from tests.unit.methods.scoring import chosen, kept_by_hand
from torch import nn

import openwork as ow
from openwork.errors import RecipeError
from openwork.methods import global_mp, magnitude


def uneven(scale=1.0):
    """Three layers of very different size and scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10), nn.Linear(10, 4))
    with torch.no_grad():
        model[1].weight.mul_(scale)
    return model


def values(model):
    return torch.cat([m.weight.detach().abs().flatten() for m in model])


@pytest.mark.parametrize("density", [0.9, 0.5, 0.1, 0.013])
def test_zeros_are_exact_and_no_kept_weight_is_smaller_than_a_pruned_one(density):
    model = uneven(0.5)
    size = values(model)
    result = ow.prune(model, global_mp(density, minimum=0.0))
    mask = chosen(result)
    assert int((~mask).sum()) == size.numel() - int(density * size.numel() + 0.5)
    assert float(size[mask].min()) >= float(size[~mask].max())


def test_the_order_of_layers_does_not_matter():
    model = uneven()
    names = ["a", "b", "c"]
    kept = []
    for order in ([0, 1, 2], [2, 0, 1]):
        layers = nn.ModuleDict({names[i]: model[i] for i in order})
        kept.append(dict(ow.prune(layers, global_mp(0.2), dry_run=True).masks))
    assert all(torch.equal(kept[0][n], kept[1][n]) for n in kept[0])


def test_without_a_floor_it_is_plain_global_magnitude():
    masks = [ow.prune(uneven(0.3), r).masks for r in (global_mp(0.1, minimum=0.0), magnitude(0.1, scope="global"))]
    assert masks[0].distance(masks[1]) == 0


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1])
def test_every_layer_keeps_its_floor_and_the_total_is_exact(density):
    model = uneven(1e-3)
    floor = int(0.03 * 940)
    size = [m.weight.detach().abs().flatten().tolist() for m in model]
    result = ow.prune(model, global_mp(density, minimum=0.03))
    kept = [t["kept"] for t in result.tensors if t["units"]]
    assert sum(kept) == int(density * 940 + 0.5)
    assert all(k >= min(floor, len(s)) for k, s in zip(kept, size, strict=True))
    # by hand: the floors first, then the largest of the rest
    want, start, flat = set(), 0, []
    for s in size:
        want |= {start + i for i in kept_by_hand(s, floor)}
        start, flat = start + len(s), flat + s
    rest = [-1.0 if i in want else v for i, v in enumerate(flat)]
    want |= kept_by_hand(rest, sum(kept) - len(want))
    assert set(chosen(result).nonzero().flatten().tolist()) == want


def test_a_floor_that_no_layer_needs_changes_nothing():
    masks = [ow.prune(uneven(), global_mp(0.5, minimum=m)).masks for m in (0.0, 0.01)]
    assert min(masks[0].kept(n) for n in masks[0]) >= 9
    assert masks[0].distance(masks[1]) == 0


def test_an_empty_layer_is_what_the_floor_prevents():
    kept = [
        [m.kept(n) for n in m] for m in (ow.prune(uneven(1e-3), global_mp(0.1, minimum=x)).masks for x in (0.0, 0.01))
    ]
    assert kept[0][1] == 0
    assert kept[1][1] == 9


def test_a_floor_beyond_the_budget_is_refused():
    with pytest.raises(
        RecipeError, match="a floor of 94 units in each of 3 tensors needs 228 units, but the budget is 19 of 940"
    ):
        ow.prune(uneven(), global_mp(0.02, minimum=0.1))


def test_one_unit_less_is_not_pruned_at_density_one():
    assert ow.prune(uneven(), global_mp(1.0)).counts.kept == 940
