"""BlockSparseLinear: made from a dense layer, saved, copied, compiled, exported, trained."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openwork.errors import KernelError, StructureError
from openwork.gpu import BlockIndex, BlockSparseLinear


def dense(rows=70, cols=90, bias=True):
    return nn.Linear(cols, rows, bias=bias), torch.rand(rows, cols) < 0.02


def loose(layer):
    """The same pattern size, another pattern, other values."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.values.normal_()
    return other


@pytest.mark.parametrize("block", [16, (32, 16), (16, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_computes_the_masked_layer(block, bias):
    linear, mask = dense(bias=bias)
    mask[:32] = False
    layer = BlockSparseLinear.from_linear(linear, mask, block, activation="relu")
    x = torch.randn(2, 5, 90)
    torch.testing.assert_close(layer(x), F.relu(F.linear(x, linear.weight * mask, linear.bias)))
    assert torch.equal(layer.to_dense(), linear.weight * mask)
    assert 0 < layer.density < 1
    with torch.no_grad():
        linear.weight.fill_(7.0)
    assert not (layer.to_dense() == 7).any()


def test_from_linear_takes_the_zeros_it_finds():
    linear, mask = dense()
    with torch.no_grad():
        linear.weight.mul_(mask)
    linear.eval().to(torch.float64).requires_grad_(False)
    layer = BlockSparseLinear.from_linear(linear, None, 16)
    assert torch.equal(layer.to_dense(), linear.weight)
    assert (layer.values.dtype, layer.values.requires_grad, layer.bias.requires_grad) == (torch.float64, False, False)
    assert not layer.training


def test_not_a_number_outside_the_mask_is_left_out():
    linear, mask = dense()
    with torch.no_grad():
        linear.weight[~mask] = float("nan")
    assert torch.isfinite(BlockSparseLinear.from_linear(linear, mask, 16)(torch.ones(90))).all()


def test_a_new_layer():
    torch.manual_seed(1)
    index = BlockIndex.of_blocks(torch.rand(5, 6) < 0.5, 70, 90, 16, 16)
    layer = BlockSparseLinear(index, dtype=torch.float64)
    bound = (90 * layer.density) ** -0.5
    assert 0.9 * bound < layer.values.abs().max() <= bound
    assert "in_features=90, out_features=70, bias=True, block=(16, 16)" in repr(layer)
    edge = index.values_of(torch.ones(70, 90)) == 0
    layer(torch.randn(4, 90, dtype=torch.float64), torch.randn(4, 70, dtype=torch.float64)).square().sum().backward()
    assert not layer.values[edge].any()
    assert not layer.values.grad[edge].any()
    assert layer.values.grad.any()


def test_saved_and_loaded():
    """A state dict brings its pattern; the tables are rebuilt, in strict order, through a file."""
    kept = torch.zeros(5, 6, dtype=torch.bool)
    kept[0, 0], kept[1, 1], kept[4, 5] = True, True, True
    one = BlockSparseLinear(BlockIndex.of_blocks(kept, 70, 90, 16, 16))
    two = BlockSparseLinear(BlockIndex.of_blocks(kept.flip(0), 70, 90, 16, 16))
    assert set(one.state_dict()) == {"values", "bias", "columns", "row_starts"}
    buffer = io.BytesIO()
    torch.save(nn.Sequential(one).state_dict(), buffer)
    buffer.seek(0)
    x = torch.randn(3, 90, requires_grad=True)
    for assign in (False, True):
        model = nn.Sequential(copy.deepcopy(two))
        buffer.seek(0)
        model.load_state_dict(torch.load(buffer, weights_only=True), assign=assign)
        assert torch.equal(model(x), one(x))
        found, expected = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, one))
        assert torch.equal(found, expected)
        assert torch.equal(model[0].to_dense(), one.to_dense())


def test_copied_and_moved():
    linear, mask = dense()
    layer = BlockSparseLinear.from_linear(linear, mask, 16)
    twin = copy.deepcopy(layer).to(torch.bfloat16)
    assert twin.columns.dtype == torch.int32
    assert twin(torch.ones(2, 90, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.values.dtype == torch.float32
    assert layer.to("meta").index.tables[-1].device.type == "meta"


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_compiled(activation):
    linear, mask = dense()
    layer = BlockSparseLinear.from_linear(linear, mask, 16, activation=activation)
    fast = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for tokens in (3, 8):
        x = torch.randn(tokens, 90)
        torch.testing.assert_close(fast(x), layer(x))
        layer.zero_grad()
        fast.zero_grad()
        layer(x).square().sum().backward()
        fast(x).square().sum().backward()
        torch.testing.assert_close(fast.values.grad, layer.values.grad)


def test_exported():
    linear, mask = dense()
    layer = BlockSparseLinear.from_linear(linear, mask, (32, 16), activation="silu")
    tokens = torch.export.Dim("tokens")
    program = torch.export.export(layer, (torch.randn(3, 90),), dynamic_shapes={"x": {0: tokens}})
    for count in (1, 3, 70):
        x = torch.randn(count, 90)
        torch.testing.assert_close(program.module()(x), layer(x))
    assert any("openwork_gpu.product" in str(node.target) for node in program.graph.nodes)


def test_refused():
    linear, mask = dense()
    with pytest.raises(StructureError, match=r"from_linear needs an nn.Linear, got Conv2d"):
        BlockSparseLinear.from_linear(nn.Conv2d(1, 1, 1), None, 16)
    with pytest.raises(
        StructureError, match=r"mask must be bool \(70, 90\) like the weight, got torch.bool \(70, 89\)"
    ):
        BlockSparseLinear.from_linear(linear, mask[:, 1:], 16)
    with pytest.raises(StructureError, match=r"mask must be bool \(70, 90\) like the weight, got torch.float32"):
        BlockSparseLinear.from_linear(linear, mask.float(), 16)
    with pytest.raises(StructureError, match="block must be one or two of 16, 32, 64, 128"):
        BlockSparseLinear.from_linear(linear, mask, 20)
    with pytest.raises(KernelError, match="activation must be one of"):
        BlockSparseLinear.from_linear(linear, mask, 16, activation="swish")


@pytest.mark.parametrize(("name", "entry", "said"), [
    ("columns", 99, r"the index cannot be used: BlockIndex: columns must be in 0 .. 5"),
    ("row_starts", -1, r"the index cannot be used: BlockIndex: row_starts must be 6 numbers"),
])  # fmt: skip
def test_a_broken_index_is_not_loaded(name, entry, said):
    linear, _ = dense()
    layer = BlockSparseLinear.from_linear(linear, torch.rand(70, 90) < 0.5, 16)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    broken = {key: value.clone() for key, value in loose(layer).state_dict().items()}
    broken[name][1] = entry
    with pytest.raises(RuntimeError, match=said):
        layer.load_state_dict(broken)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_another_number_of_blocks_is_refused_by_torch():
    linear, mask = dense()
    layer = BlockSparseLinear.from_linear(linear, torch.ones_like(mask), 16)
    other = BlockSparseLinear.from_linear(linear, mask & (torch.arange(90) < 16), 16)
    with pytest.raises(RuntimeError, match="size mismatch for values"):
        layer.load_state_dict(other.state_dict())
