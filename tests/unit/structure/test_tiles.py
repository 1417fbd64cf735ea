"""Partitions: their laws, and units written out by hand."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.core import views
from openwork.core.partition import Partition
from openwork.core.protocols import Structure
from openwork.core.select import keep_top
from openwork.core.targets import Target
from openwork.errors import StructureError
from openwork.structure import Covered, Tiles, partition
from openwork.structure.shapes import Shape

VIEWS = {
    "linear": views.linear_view((6, 8)),
    "conv1d of transformers": views.transposed_view((8, 6)),
    "conv": views.conv_view((6, 4, 3, 2)),
    "conv1d": views.conv_view((6, 4, 3)),
    "transposed conv": views.transposed_conv_view((4, 6, 3)),
    "experts": views.stacked_view((3, 6, 4)),
}
SHAPES = [
    ow.Element(), ow.Element("row"), ow.Row(), ow.Column(), ow.Block(2, 2), ow.Block(4, 5), ow.Block(1, 100),
    ow.NM(1, 4), ow.NM(2, 3, dim=0), ow.GroupOf(2), ow.GroupOf(4, dim=0), ow.Filter(), ow.Kernel(),
    ow.InputChannel(),
]  # fmt: skip


def fit(structure, name):
    view = VIEWS[name]
    return structure.fit(Target("w", view.shape, view, conv="conv" in name and name != "conv1d of transformers"))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("structure", SHAPES, ids=repr)
def test_laws_of_partitions(structure, name):
    part = fit(structure, name)
    if isinstance(part, str):
        assert type(structure) in (ow.Filter, ow.Kernel)
        assert name in ("linear", "conv1d of transformers", "experts")
        return
    shape = VIEWS[name].shape
    ones = {"w": torch.ones(shape, dtype=torch.float64)}
    units = torch.randn(part.n_units, dtype=torch.float64)
    assert isinstance(part, Partition)
    assert isinstance(structure.density, float | None)
    spread = part.spread(units)["w"]
    assert spread.shape == shape
    assert torch.equal(part.pool(ones), part.cost.double())
    assert int(part.cost.sum()) == torch.Size(shape).numel()
    torch.testing.assert_close(part.pool({"w": spread}, "mean"), units, rtol=1e-12, atol=1e-12)
    assert torch.equal(part.pool({"w": spread}, "max"), units)
    torch.testing.assert_close(
        part.pool({"w": spread}, "norm"), units.abs() * part.cost.double().sqrt(), rtol=1e-12, atol=0
    )
    numbers = part.spread(torch.arange(part.n_units))["w"]
    assert torch.equal(torch.bincount(numbers.flatten(), minlength=part.n_units), part.cost)
    assert torch.equal(part.pool({"w": numbers}, "max"), torch.arange(part.n_units))
    values = torch.randn(shape, dtype=torch.float64)
    sums = torch.zeros(part.n_units, dtype=torch.float64).index_add_(0, numbers.flatten(), values.flatten())
    torch.testing.assert_close(part.pool({"w": values}), sums, rtol=1e-12, atol=1e-12)
    leaf = units.clone().requires_grad_()
    part.spread(leaf)["w"].sum().backward()
    assert torch.equal(leaf.grad, part.cost.double())


def test_blocks_hold_neighbouring_inputs_of_one_kernel_position():
    part = fit(ow.Block(2, 4), "conv")
    numbers = part.spread(torch.arange(part.n_units))["w"]
    assert part.grid == (1, 3, 6)
    for o in range(6):
        for i in range(4):
            for a in range(3):
                for b in range(2):
                    assert numbers[o, i, a, b] == (o // 2) * 6 + a * 2 + b


def test_runs_of_n_of_m_lie_along_the_channels_or_along_the_outputs():
    torch.manual_seed(0)
    for name, dim, of in (
        ("conv", 1, 4),
        ("conv", 0, 3),
        ("transposed conv", 0, 2),
        ("linear", 0, 6),
        ("experts", 0, 3),
    ):
        part = fit(ow.NM(1, of, dim=dim), name)
        values = torch.randn(VIEWS[name].shape)
        kept = part.spread(keep_top(part.pool({"w": values.abs()}), 1, part.scope()))["w"]
        out = {"conv": 0, "transposed conv": 1, "linear": 0, "experts": 1}[name]
        inn = {"conv": 1, "transposed conv": 0, "linear": 1, "experts": 2}[name]
        along = inn if dim == 1 else out
        runs = kept.movedim(along, -1).unflatten(-1, (-1, of))
        best = values.abs().movedim(along, -1).unflatten(-1, (-1, of))
        assert torch.equal(runs.sum(-1), torch.ones(runs.shape[:-1], dtype=torch.int64))
        assert torch.equal(runs, best == best.amax(-1, keepdim=True))


def test_rows_filters_kernels_and_groups_by_hand():
    row, filt = fit(ow.Row(), "conv"), fit(ow.Filter(), "conv")
    units = torch.tensor([1, 0, 0, 1, 1, 0], dtype=torch.bool)
    assert torch.equal(row.spread(units)["w"], units[:, None, None, None].expand(6, 4, 3, 2))
    assert torch.equal(filt.spread(units)["w"], row.spread(units)["w"])
    kernel = fit(ow.Kernel(), "transposed conv")
    pairs = torch.arange(24).reshape(6, 4)  # (out, in)
    assert torch.equal(kernel.spread(torch.arange(24))["w"], pairs.T[:, :, None].expand(4, 6, 3))
    channel = fit(ow.InputChannel(), "conv")
    assert torch.equal(channel.spread(torch.arange(4))["w"], torch.arange(4)[None, :, None, None].expand(6, 4, 3, 2))
    channel = fit(ow.InputChannel(), "transposed conv")
    assert torch.equal(channel.spread(torch.arange(4))["w"], torch.arange(4)[:, None, None].expand(4, 6, 3))
    group = fit(ow.GroupOf(4), "linear")
    assert torch.equal(group.spread(torch.arange(12))["w"], torch.arange(12).repeat_interleave(4).reshape(6, 8))
    column = fit(ow.Column(), "experts")
    assert torch.equal(column.spread(torch.arange(12))["w"], torch.arange(12).reshape(3, 1, 4).expand(3, 6, 4))


def test_norms_of_half_precision_are_taken_in_float32():
    part = Tiles("w", views.linear_view((8, 8)), (8, 8))
    w = (torch.rand(8, 8) + 0.5).bfloat16()
    assert float(part.pool({"w": w}, "norm")) == pytest.approx(float(w.double().square().sum().sqrt()), rel=1e-6)


def test_integers_can_be_pooled():
    part = Tiles("w", views.linear_view((3, 3)), (2, 2))
    values = {"w": -torch.arange(1, 10).reshape(3, 3)}
    assert part.pool(values).tolist() == [-12, -9, -15, -9]
    assert part.pool(values, "max").tolist() == [-1, -3, -7, -9]


def test_a_structure_says_how_it_fits():
    with pytest.raises(StructureError, match="Shape does not say how it fits a tensor"):
        Shape().fit(Target("w", (2, 2), views.linear_view((2, 2))))
    assert isinstance(Shape().density, type(None))
    with pytest.raises(
        StructureError, match=r"w: 1 of 4 needs dimension 1 divisible by 4, but it is 6 \(shape \(2, 6\)\)"
    ):
        ow.NM(1, 4).fit(Target("w", (2, 6), views.linear_view((2, 6))))
    with pytest.raises(StructureError, match=r"w: Block\(3, 9\) must fit into the 2 x 6 matrix"):
        ow.Block(3, 9).fit(Target("w", (2, 6), views.linear_view((2, 6))))
    assert hasattr(Structure, "fit")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.small, self.fc = nn.Conv2d(4, 8, 3), nn.Linear(2, 2), nn.Linear(8, 8)


def test_coverage_has_a_row_for_every_parameter():
    model = Net()
    parts, rows = partition(model, ow.Filter(), ow.Select())
    assert list(parts) == ["conv.weight"]
    assert [r.name for r in rows] == [n for n, _ in model.named_parameters()]
    assert rows[0] == Covered("conv.weight", (8, 4, 3, 3), 288, 8, "")
    assert all(bool(r.skipped) == (r.units == 0) for r in rows)


def test_small_tensors_may_stay_dense_only_when_asked():
    with pytest.raises(StructureError, match=r"small.weight: Block\(3, 3\) must fit into the 2 x 2 matrix"):
        partition(Net(), ow.Block(3, 3), ow.Select())
    parts, rows = partition(Net(), ow.Block(3, 3), ow.Select(min_units=2))
    assert list(parts) == ["conv.weight", "fc.weight"]
    reasons = {r.name: r.skipped for r in rows}
    assert reasons["small.weight"].startswith("the structure does not fit (small.weight: Block(3, 3)")
    parts, rows = partition(Net(), ow.Row(), ow.Select(min_units=3))
    assert {r.name: r.skipped for r in rows}["small.weight"] == "2 units, fewer than min_units=3"
    with pytest.raises(StructureError, match=r"Row\(\) fits none of the 3 selected tensors"):
        partition(Net(), ow.Row(), ow.Select(min_units=9))


def test_the_costs_of_equal_tiles_take_no_memory():
    for block, size in (((1, 1), 1), ((4, 2), 8)):
        tiles = Tiles("w", views.linear_view((64, 32)), block)
        assert tiles.cost.untyped_storage().nbytes() == 8
        assert tiles.cost.tolist() == [size] * tiles.n_units
