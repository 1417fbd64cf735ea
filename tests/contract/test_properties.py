"""Laws over drawn structures, allocations, densities and ragged shapes."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import openwork as ow
from openwork.allocation import ErdosRenyi, Global, Uniform
from openwork.core.select import count_kept
from openwork.criteria import Magnitude
from openwork.errors import StructureError
from openwork.methods import magnitude, random
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.structure import partition

drawn = settings(deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
size = st.integers(1, 13)
density = st.one_of(st.floats(0.02, 1.0), st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]))


class Experts(nn.Module):
    """Stacked matrices [expert, out, in]."""

    def __init__(self, experts, out, inn):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, out, inn))


@st.composite
def layers(draw):
    """One layer of any kind with small, uneven sizes and distinct weights."""
    a, b, g = draw(size), draw(size), draw(st.integers(1, 3))
    k = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["linear", "conv1", "conv2", "conv3", "grouped", "depthwise", "transposed", "experts"]))
    layer = {
        "linear": lambda: nn.Linear(a, b),
        "conv1": lambda: nn.Conv1d(a, b, k),
        "conv2": lambda: nn.Conv2d(a, b, (k, 2)),
        "conv3": lambda: nn.Conv3d(min(a, 4), b, (1, k, 2)),
        "grouped": lambda: nn.Conv2d(g * min(a, 4), g * min(b, 4), k, groups=g),
        "depthwise": lambda: nn.Conv2d(a, a, k, groups=a),
        "transposed": lambda: nn.ConvTranspose2d(a, b, k),
        "experts": lambda: Experts(g + 1, a, b),
    }[kind]()
    weight = layer.weight
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    with torch.no_grad():
        weight.copy_(((order + 1) * (1 - 2 * (order % 2))).view_as(weight) / weight.numel())
    return nn.ModuleDict({"layer": layer})


@st.composite
def structures(draw):
    r, c = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    keep, of = sorted((draw(st.integers(1, 4)), draw(st.integers(1, 4))))
    return draw(
        st.sampled_from(
            [
                ow.Element(), ow.Element(per="row"), ow.Row(), ow.Column(), ow.Block(r, c), ow.GroupOf(r),
                ow.GroupOf(r, dim=0), ow.NM(keep, of), ow.NM(keep, of, dim=0), ow.Filter(), ow.Kernel(),
            ]
        )
    )  # fmt: skip


def fitted(model, structure):
    """The one partition, or nothing where the structure says that it does not fit."""
    try:
        parts, _ = partition(model, structure, ow.Select())
    except StructureError:
        assume(False)
    (part,) = parts.values()
    return part


@drawn
@given(layers(), structures())
def test_every_entry_is_in_exactly_one_unit(model, structure):
    part = fitted(model, structure)
    (name,) = part.members
    weight = dict(model.named_parameters())[name].detach()
    ids = part.spread(torch.arange(part.n_units))[name]
    assert ids.shape == weight.shape
    assert torch.equal(torch.bincount(ids.flatten(), minlength=part.n_units), part.cost)
    assert int(part.cost.sum()) == weight.numel()
    assert torch.equal(part.pool({name: torch.ones_like(weight)}), part.cost.float())
    values = torch.arange(part.n_units, dtype=torch.float64)
    back = part.spread(values)
    torch.testing.assert_close(part.pool(back, "mean"), values, rtol=1e-14, atol=0)
    assert torch.equal(part.pool(back, "max"), values)
    # pooling against a loop over the units, 13 * 13 * 6 terms at most
    exact = weight.double()
    for how, one in (("sum", torch.sum), ("max", torch.max), ("norm", torch.linalg.vector_norm)):
        slow = torch.stack([one(exact[ids == u]) for u in range(part.n_units)])
        torch.testing.assert_close(part.pool({name: exact}, how), slow, rtol=1e-12, atol=1e-12)


@drawn
@given(layers(), structures())
def test_a_unit_is_what_its_structure_says(model, structure):
    """The shape of units, told from the tensor's own indices and not from the matrix view."""
    part = fitted(model, structure)
    (name,) = part.members
    layer = model["layer"]
    ids = part.spread(torch.arange(part.n_units))[name]
    out = 0 if not isinstance(layer, nn.ConvTranspose2d | Experts) else 1
    inn = {nn.ConvTranspose2d: 0, Experts: 2}.get(type(layer), 1)
    for u in range(0, part.n_units, max(1, part.n_units // 7)):
        at = (ids == u).nonzero()
        outs, inns = at[:, out].unique().numel(), at[:, inn].unique().numel()
        if isinstance(structure, ow.Element | ow.NM):
            assert len(at) == 1
        elif isinstance(structure, ow.Row | ow.Filter):
            assert outs == 1
            assert len(at) == ids.numel() // ids.shape[out] // (ids.shape[0] if isinstance(layer, Experts) else 1)
        elif isinstance(structure, ow.Column):
            assert inns == 1
            assert outs == ids.shape[out]
        elif isinstance(structure, ow.Kernel):
            assert outs == inns == 1
            assert len(at) == ids[0, 0].numel()
        elif isinstance(structure, ow.Block):
            assert outs <= structure.rows
        elif structure.dim == 1:
            assert outs == 1
            assert len(at) <= structure.size
        else:
            assert len(at) == outs <= structure.size


@drawn
@given(layers(), structures(), density, st.sampled_from(["ceil", "floor", "nearest"]))
def test_counts_are_exact_and_units_are_whole(model, structure, share, rounding):
    part = fitted(model, structure)
    share = structure.density or share
    recipe = ow.Recipe("made", structure, TopK(Magnitude(), Uniform(rounding)), OneShot(share))
    counted = count_kept(share, part.scope() or part.n_units, rounding)
    assume(share < 1 and counted > 0)
    result = ow.prune(model, recipe)
    (mask,) = result.masks.values()
    (name,) = part.members
    alive = part.pool({name: mask.long()}) == part.cost
    assert torch.equal(part.pool({name: mask.long()}), part.cost * alive), "a unit was cut"
    run = part.scope() or part.n_units
    keep = structure.keep if isinstance(structure, ow.NM) else counted
    assert set(alive.view(-1, run).sum(1).tolist()) == {keep}
    assert bool((dict(model.named_parameters())[name][~mask] == 0).all())
    assert result.counts.kept == int(mask.sum())


@drawn
@given(layers(), structures(), density, density)
def test_magnitude_masks_are_nested(model, structure, one, two):
    fitted(model, structure)
    if structure.density is not None:
        one = two = structure.density
    masks = [ow.prune(model, magnitude(d, structure), dry_run=True).masks for d in sorted((one, two))]
    assert all(bool((masks[1][n] | ~masks[0][n]).all()) for n in masks[0])


@drawn
@given(layers(), structures(), density)
def test_ties_go_to_the_lower_index(model, structure, share):
    part = fitted(model, structure)
    share = structure.density or share
    (name,) = part.members
    with torch.no_grad():
        dict(model.named_parameters())[name].fill_(2.0)  # sums of small integers are exact, whatever their order
    assume(part.cost.unique().numel() == 1)
    result = ow.prune(model, magnitude(share, structure))
    run = part.scope() or part.n_units
    kept = result.units[name].view(-1, run)
    assert torch.equal(kept, torch.arange(run).expand_as(kept) < kept.sum(1, keepdim=True))


@drawn
@given(st.integers(2, 40), st.integers(2, 4), st.data())
def test_one_ranking_equals_equal_shares_when_layers_are_permutations(n, count, data):
    keep = data.draw(st.integers(1, n))
    values = torch.arange(1.0, n + 1)
    model = nn.ModuleDict({f"l{i}": nn.Linear(n, 1) for i in range(count)})
    with torch.no_grad():
        for i, layer in enumerate(model.values()):
            layer.weight.copy_(values[torch.randperm(n, generator=torch.Generator().manual_seed(i))])
    masks = [ow.prune(model, magnitude(keep / n, scope=s), dry_run=True).masks for s in ("global", "layer")]
    assert masks[0].distance(masks[1]) == 0


@pytest.mark.parametrize(("share", "kept"), [(0.25, [4, 0, 0]), (0.5, [4, 3, 0]), (0.8, [4, 6, 1])])
def test_ties_between_layers_go_to_the_earlier_one(share, kept):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(-1.0)
        model[2].weight.zero_()
    rows = [t for t in ow.prune(model, magnitude(share, scope="global")).tensors if t["units"]]
    assert [t["kept"] for t in rows] == kept


@drawn
@given(st.lists(st.floats(-5, 5), min_size=12, max_size=12, unique_by=abs), st.integers(1, 11))
def test_magnitude_is_the_best_mask_of_its_size(values, keep):
    """Brute force: no other choice of as many weights leaves a smaller |w - m w|^2."""
    model = nn.Linear(12, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values, dtype=torch.float64))
    squares = [v * v for v in values]
    best = min(
        math.fsum(s for i, s in enumerate(squares) if i not in c) for c in itertools.combinations(range(12), keep)
    )
    mask = ow.prune(model, magnitude(keep / 12)).masks["weight"].flatten().tolist()
    assert math.fsum(s for s, m in zip(squares, mask, strict=True) if not m) == best


@drawn
@given(layers(), structures(), density, st.floats(0.01, 100))
def test_scale_and_sign_do_not_matter_inside_a_layer(model, structure, share, factor):
    part = fitted(model, structure)
    share = structure.density or share
    want = ow.prune(model, magnitude(share, structure), dry_run=True).masks
    (name,) = part.members
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(-(2.0 ** round(math.log2(factor))))  # exact in floating point
    assert want.distance(ow.prune(model, magnitude(share, structure), dry_run=True).masks) == 0


@drawn
@given(
    st.lists(st.tuples(size, size), min_size=1, max_size=4),
    density,
    st.sampled_from([Global, ErdosRenyi]),
    st.sampled_from([ow.Element(), ow.Row(), ow.Block(2, 3)]),
)
def test_totals_over_several_layers_are_exact(shapes, share, allocation, structure):
    model = nn.ModuleDict({f"l{i}": nn.Linear(a + 3, b + 2) for i, (a, b) in enumerate(shapes)})
    parts, _ = partition(model, structure, ow.Select())
    units = sum(p.n_units for p in parts.values())
    budget = count_kept(share, units)
    assume(allocation is Global or budget >= len(parts))
    recipe = ow.Recipe("made", structure, TopK(Magnitude(), allocation()), OneShot(share))
    result = ow.prune(model, recipe)
    assert sum(int(u.sum()) for u in result.units.values()) == budget
    if allocation is ErdosRenyi:
        assert all(bool(u.any()) for u in result.units.values())


@pytest.mark.parametrize("scope", ["erk", "layer", "global"])
@pytest.mark.parametrize("structure", [ow.Element(), ow.Row(), ow.Block(2, 3)], ids=repr)
def test_random_masks_have_exact_counts_in_every_scope(scope, structure):
    for share in (0.1, 0.37, 0.9):
        model = nn.Sequential(nn.Linear(9, 14), nn.Linear(14, 7))
        result = ow.prune(model, random(share, structure, scope=scope))
        kept, total = (sum(int(f(u)) for u in result.units.values()) for f in (torch.sum, torch.numel))
        if scope == "layer":
            assert [int(u.sum()) for u in result.units.values()] == [
                count_kept(share, u.numel()) for u in result.units.values()
            ]
        else:
            assert kept == count_kept(share, total)


def test_a_layer_scaled_up_keeps_more_under_one_ranking_only():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20))
    layer, ranked = (ow.prune(model, magnitude(0.3, scope=s), dry_run=True).masks for s in ("layer", "global"))
    with torch.no_grad():
        model[0].weight.mul_(4)
    after = [ow.prune(model, magnitude(0.3, scope=s), dry_run=True).masks for s in ("layer", "global")]
    assert layer.distance(after[0]) == 0
    assert after[1].kept("0.weight") > ranked.kept("0.weight")
