"""Magnitude: exact counts, ties, patterns. Brute force and nesting over drawn shapes are in tests/contract/test_properties.py."""

import pytest
import torch
from tests.unit.methods.scoring import chosen, kept_by_hand
from torch import nn

import openwork as ow
from openwork.errors import RecipeError
from openwork.methods import magnitude
from openwork.schedules import Cubic


def test_counts_follow_the_rule():
    """kept = n - floor(s n), with 1e-9 against (1 - 0.9) * 10 = 0.99999."""
    for n in (1, 7, 10, 97):
        for percent in range(1, 100):
            model = nn.Linear(n, 1, bias=False)
            kept = ow.prune(model, magnitude(1 - (100 - percent) / 100)).counts.kept
            assert kept == n - (n * (100 - percent)) // 100


def test_the_global_mask_is_the_sorted_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    values = torch.cat([m.weight.detach().abs().flatten() for m in model]).tolist()
    result = ow.prune(model, magnitude(0.3, scope="global"))
    assert set(chosen(result).nonzero().flatten().tolist()) == kept_by_hand(values, 17)  # ceil(0.3 * 56)


def test_lamp_keeps_the_least_distortion_and_no_layer_empty():
    """Each layer keeps its own largest, as many as its scores win in one ranking, whatever the layer's scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    flat = [m.weight.detach().flatten().double().square() for m in model]
    scores = torch.cat([torch.stack([w / row[row >= w].sum() for w in row]) for row in flat]).tolist()
    result = ow.prune(model, magnitude(0.3, scope="lamp"), dry_run=True)
    assert set(chosen(result).nonzero().flatten().tolist()) == kept_by_hand(scores, 17)
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    again = ow.prune(model, magnitude(0.3, scope="lamp"), dry_run=True)
    assert all(torch.equal(again.units[n], u) for n, u in result.units.items())
    few = ow.prune(model, magnitude(2 / 56, scope="lamp"), dry_run=True)
    assert [int(u.sum()) for u in few.units.values()] == [1, 1]
    assert ow.Recipe.from_dict(result.recipe.to_dict()) == result.recipe
    with pytest.raises(RecipeError, match="has quotas of its own, so scope must be 'layer', got 'lamp'"):
        magnitude(structure=ow.NM(2, 4), scope="lamp")


def test_blocks_of_one_weight_are_single_weights():
    torch.manual_seed(0)
    model = nn.Linear(11, 9)
    for norm in ("l1", "l2"):
        masks = [
            ow.prune(model, magnitude(0.4, s, norm=norm), dry_run=True).masks for s in (ow.Element(), ow.Block(1, 1))
        ]
        assert masks[0].distance(masks[1]) == 0


def test_blocks_of_equal_weights_are_pruned_like_single_weights():
    torch.manual_seed(0)
    model = nn.Linear(12, 8, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 3).repeat_interleave(2, 0).repeat_interleave(4, 1))
    masks = [ow.prune(model, magnitude(0.5, s), dry_run=True).masks for s in (ow.Element(), ow.Block(2, 4))]
    assert masks[0].distance(masks[1]) == 0


def test_norms_of_units():
    """Two rows: (3, 0) and (2, 2). l2 prefers the first, l1 the second."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [2.0, 2.0]]))
    for norm, want in (("l2", [True, False]), ("l1", [False, True])):
        units = ow.prune(model, magnitude(0.5, ow.Row(), norm=norm), dry_run=True).units
        assert units["weight"].tolist() == want


def test_the_cubic_curve_begins_steep_and_ends_flat():
    curve = Cubic(0.05, begin=10, end=60, every=5, initial=0.95)
    sparsity = [1 - curve(t).share for t in range(10, 61, 5)]
    steps = [b - a for a, b in zip(sparsity, sparsity[1:], strict=False)]
    assert abs(sparsity[0] - 0.05) < 1e-12
    assert abs(sparsity[-1] - 0.95) < 1e-12
    assert all(s > 0 for s in steps)
    assert steps == sorted(steps, reverse=True)
