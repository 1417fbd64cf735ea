"""The operators under torch.compile and torch.export, and torch's own checks of them."""

import io

import pytest
import torch
from tests.unit.kernels.making import block, layouts
from tests.unit.runtime.models import always, mlp, net, thin
from torch import nn

import openwork as ow
from openwork.runtime import pack

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.slow
def test_operators_pass_the_checks_of_torch():
    fmt = block(32, 72, 16, 8)
    layout = layouts(fmt, 8)[0]
    weights = (layout.kind, list(layout.tensors), list(layout.sizes))
    end = (torch.randn(32), torch.randn(2, 32, 3, 4), "relu", [3, 3], [1, 1], [0, 0], [1, 1])
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.openwork.sparse_conv2d.default, (x, *weights, *end))
    layout = layouts(fmt)[1]
    weights = (layout.kind, list(layout.tensors), list(layout.sizes))
    x = torch.randn(2, 3, 72).to(torch.bfloat16)
    end = (torch.randn(32), torch.randn(2, 3, 32), "gelu")
    torch.library.opcheck(torch.ops.openwork.sparse_linear.default, (x, *weights, *end))


def test_fake_outputs_have_the_strides_of_real_ones(isa):
    """What torch.compile believes about memory must hold on every path."""
    layout = layouts(block(32, 72, 16, 8), 8)[0]
    weights = (layout.kind, list(layout.tensors), list(layout.sizes), None, None, "none")
    for form in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(2, 8, 5, 6).to(dtype).contiguous(memory_format=form)
            y = torch.ops.openwork.sparse_conv2d(x, *weights, [3, 3], [1, 1], [0, 0], [1, 1])
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = torch.ops.openwork.sparse_conv2d(mode.from_tensor(x), *weights, [3, 3], [1, 1], [0, 0], [1, 1])
            assert (fake.shape, fake.stride(), fake.dtype) == (y.shape, y.stride(), y.dtype)


@pytest.mark.parametrize("make", [mlp, net], ids=lambda f: f.__name__)
def test_compiled_whole(make):
    packed = always(make())
    shape = (48,) if make is mlp else (3, 9, 9)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (9, 3, 17):
        x = torch.randn(count, *shape)
        assert torch.equal(compiled(x), packed(x))
    if make is net:
        x = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)
        assert torch.equal(compiled(x), packed(x))


def test_compiled_with_onednn_layers():
    model = mlp()
    packed = pack(model, plan="always", override={"0": "onednn", "2": "onednn"})
    x = torch.randn(9, 48)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), packed(x))
    torch.testing.assert_close(torch.export.export(packed, (x,)).module()(x), packed(x))
    convolutions = pack(net(), plan="always", override={"conv1": "onednn", "skip": "onednn"})
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(torch.export.export(convolutions, (x,)).module()(x), convolutions(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_a_dynamic_batch_and_read_again(strict):
    for make, shape in ((mlp, (48,)), (net, (3, 9, 9))):
        packed = always(make(), ow.Block(4, 1))
        batch = torch.export.Dim("batch", min=2, max=512)
        program = torch.export.export(packed, (torch.randn(5, *shape),), dynamic_shapes=({0: batch},), strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        again = torch.export.load(file).module()
        for count in (2, 4, 5, 33):
            x = torch.randn(count, *shape)
            torch.testing.assert_close(again(x), packed(x))


def test_compiled_blocks_of_bfloat16():
    model = thin(nn.Sequential(nn.Linear(64, 64)), block=(16, 16))
    packed = always(model, ow.Block(16, 16), dtype=torch.bfloat16)
    x = torch.randn(3, 7, 64, dtype=torch.bfloat16)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), packed(x))
    assert compiled(x).dtype == torch.bfloat16
