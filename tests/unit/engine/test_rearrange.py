"""Channels in another order: the same function, more weight kept by groups, and what cannot move stays."""

from itertools import combinations

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.errors import StructureError
from openwork.graph import Group, build_graph
from openwork.graph.groups import Site
from openwork.graph.permute import permuted
from openwork.structure import GroupOf
from openwork.structure.alignment import align, kept_of

FOUR = GroupOf(4, dim=0)


class Mobile(nn.Module):
    """A convolution, a depthwise and a pointwise one, with norms whose statistics are not those of the start."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, groups=12)
        self.point, self.head = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.point(torch.relu(self.depth(h)))).mean((2, 3)))


NETS = {
    "plain": (lambda: ow.build_model("lenet", (1, 12, 12), 10), (1, 12, 12)),
    "residual": (lambda: ow.build_model("resnet8", (3, 16, 16), 10), (3, 16, 16)),
    "depthwise": (Mobile, (3, 12, 12)),
}


def built(name):
    torch.manual_seed(0)
    make, shape = NETS[name]
    model = make().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.normal_(m.weight, 1, 0.3)
            nn.init.normal_(m.bias)
    return model, torch.randn(2, *shape)


@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_and_groups_keep_more(name):
    model, x = built(name)
    weights, expected = {n: p.clone() for n, p in model.named_parameters()}, model(x).detach()
    moved = ow.rearrange(model, FOUR, 0.25, example=x)
    assert float((model(x) - expected).detach().abs().max()) < 1e-5
    assert {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])} >= set(moved[0].layers)
    assert all(m.after > m.before and not m.why for m in moved), moved
    for m in moved:
        assert torch.equal(m.order.sort().values, torch.arange(len(m.order)))
    if name == "residual":  # both makers of a residual sum share one order
        assert {len(m.layers) for m in moved} == {1, 2}


def test_every_group_keeps_as_many_and_packed_layers_agree():
    model, x = built("depthwise")  # ten outputs: the last group has two
    structure = GroupOf(4, dim=0, per="row")
    where = ow.Select(include=("first", "point"))
    ow.rearrange(model, structure, 0.5, where, example=x)
    result = ow.prune(model, ow.methods.magnitude(0.5, structure, where))
    kept = result.masks["point.weight"].flatten(1)
    assert [int(kept[g].sum(1).unique()) for g in (slice(0, 4), slice(4, 8), slice(8, 10))] == [6, 6, 6]
    assert all(bool((kept[g] == kept[g][0]).all()) for g in (slice(0, 4), slice(4, 8), slice(8, 10)))
    packed = ow.pack(model, FOUR, plan="always", example=x)
    assert float((packed(x) - model(x)).detach().abs().max()) < 1e-5


def best_of_all(rows, keep):
    """Eight rows in two groups of four: every way to divide them."""
    found = 0.0
    for chosen in combinations(range(1, 8), 3):
        first = (0, *chosen)
        order = torch.tensor([*first, *(i for i in range(8) if i not in first)])
        found = max(found, float(kept_of(rows, order, 4, keep).sum()))
    return found


def test_the_search_finds_the_best_division_of_small_matrices():
    hits = 0
    for seed in range(40):
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).square()
        value = float(kept_of(rows, align([rows], 4, [3], seed), 4, 3).sum())
        best = best_of_all(rows, 3)
        assert value <= best * (1 + 1e-6)
        hits += value >= best * (1 - 1e-6)
    assert hits >= 36


def test_planted_clusters_are_found():
    rng = torch.Generator().manual_seed(0)
    rows = torch.full((96, 40), 0.01)
    for i, row in enumerate(rows):  # every sixth row wants the same ten columns
        row[torch.randperm(40, generator=torch.Generator().manual_seed(i % 6))[:10]] = 1.0
    rows = rows[torch.randperm(96, generator=rng)]
    order = align([rows], 16, [10])
    before, after = (float(kept_of(rows, o, 16, 10).sum()) for o in (torch.arange(96), order))
    assert before < 0.6 * 960
    assert after == pytest.approx(960)


def test_a_model_that_knows_its_places_stays_as_it_is():
    class Reading(nn.Sequential):
        def forward(self, x):
            h = self[0](x)
            return self[1](h * torch.linspace(1, 2, 16))  # a constant for every channel, which no graph moves

    torch.manual_seed(0)
    model = Reading(nn.Linear(8, 16), nn.Linear(16, 4))
    weights = [p.clone() for p in model.parameters()]
    moved = ow.rearrange(model, FOUR, 0.25, example=torch.randn(3, 8))
    assert all("the outputs change" in m.why and m.after == m.before for m in moved), moved
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_refusals():
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.zeros(1, 8)
    with pytest.raises(StructureError, match=r"rearrange: structure must be GroupOf\(size, dim=0\), got Block"):
        ow.rearrange(model, ow.Block(4, 4), 0.5, example=x)
    with pytest.raises(StructureError, match=r"rearrange: density must be in \(0, 1\], got 0"):
        ow.rearrange(model, FOUR, 0, example=x)
    with pytest.raises(StructureError, match="GroupOf: per must be 'tensor' or 'row', got 'column'"):
        GroupOf(4, per="column")
    group = build_graph(model, x).groups[0]
    with pytest.raises(StructureError, match="the order must hold each of its 16 units once"):
        permuted(dict(model.named_parameters()), group, torch.zeros(16, dtype=torch.long))
    ragged = Group("x", "channels", 2, (Site("0.weight", 0, torch.tensor([0, 0, 1]), False, True),))
    with pytest.raises(StructureError, match="x: its units differ in size in 0.weight, so they cannot trade places"):
        permuted({"0.weight": torch.zeros(3, 2)}, ragged, torch.tensor([1, 0]))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(StructureError, match=r"rearrange: 0.weight holds NaN or infinite weights, so its channels"):
        ow.rearrange(model, FOUR, 0.5, example=x)
