"""Calls like the one before are spared most checks: whatever differs must be seen all the same."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openwork.errors import FormatError
from openwork.formats import BlockSparse, Csr
from openwork.kernels import isa
from openwork.kernels.again import Again
from openwork.runtime import PackedConv2d, PackedLinear


def linear(rows=16, cols=32):
    torch.manual_seed(0)
    matrix = torch.randn(rows, cols) * (torch.rand(rows, cols) < 0.4)
    return PackedLinear(Csr.pack(matrix, matrix != 0), torch.randn(rows), "column")


def conv(rows=8, channels=4):
    torch.manual_seed(0)
    matrix = torch.randn(rows, 9 * channels) * (torch.rand(rows, 9 * channels) < 0.4)
    window = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return PackedConv2d(Csr.pack(matrix, matrix != 0), torch.randn(rows), "column", **window)


LAYERS = {"linear": (linear, (5, 32)), "conv": (conv, (2, 4, 6, 6))}


def dense(layer, x):
    if isinstance(layer, PackedConv2d):
        y = F.conv2d(x, layer.dense_weight(), layer.bias, layer.stride, layer.padding)
    else:
        y = F.linear(x, layer.dense_weight(), layer.bias)
    return F.relu(y) if layer.activation == "relu" else y


@pytest.fixture
def spared(monkeypatch):
    """How many calls were spared their checks."""
    found, run = [], Again.run

    def counted(self, *args):
        y = run(self, *args)
        found.append(y is not None)
        return y

    monkeypatch.setattr(Again, "run", counted)
    return found


@pytest.fixture(params=LAYERS)
def warm(request, spared):
    """A layer that was called with random inputs before, and an input."""
    make, shape = LAYERS[request.param]
    layer = make()
    layer(torch.randn(shape))
    layer(torch.randn(shape))
    assert spared == ([] if isa() == "python" else [True])
    spared.clear()
    return layer, torch.randn(shape)


def close(layer, x, y=None):
    torch.testing.assert_close(layer(x) if y is None else y, dense(layer, x), rtol=1e-5, atol=1e-5)


def test_another_input_gives_another_output(warm, spared):
    layer, x = warm
    close(layer, x)
    close(layer, -x)
    assert all(spared)


@pytest.mark.parametrize("change", ["fewer", "double", "strides", "last"])
def test_inputs_of_another_kind(warm, spared, change):
    layer, x = warm
    if change == "last" and x.dim() == 2:
        pytest.skip("two dimensions have one order")
    other = {
        "fewer": lambda: x[:1].clone(),
        "double": lambda: x.double(),
        "strides": lambda: torch.cat([x, x], -1)[..., : x.shape[-1]],
        "last": lambda: x.contiguous(memory_format=torch.channels_last),
    }[change]()
    y = layer(other)
    assert not any(spared)
    assert y.dtype is other.dtype
    close(layer, other.float(), y.float())
    if change == "last":
        assert y.is_contiguous(memory_format=torch.channels_last)
    close(layer, x)


def test_outputs_keep_their_order():
    """An image of one pixel is in both orders; bfloat16 is computed in another one than it is returned in."""
    torch.manual_seed(0)
    fmt = BlockSparse.pack(torch.randn(32, 288), torch.ones(32, 288) > 0, height=32, width=32, dtype=torch.bfloat16)
    window = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (2, 2), "dilation": (1, 1)}
    layer = PackedConv2d(fmt, None, "block", **window)
    x = torch.randn(2, 32, 1, 1).bfloat16()
    first, second = layer(x), layer(x)
    assert first.stride() == second.stride()
    assert first.is_contiguous()
    assert torch.equal(first, second)


def test_a_bias_may_change(warm):
    layer, x = warm
    layer.bias.add_(3)
    close(layer, x)
    layer.bias = torch.randn_like(layer.bias)
    close(layer, x)
    layer._buffers["bias"] = torch.randn_like(layer.bias)
    close(layer, x)
    layer.bias.data = torch.randn_like(layer.bias)
    close(layer, x)
    layer.bias = None
    close(layer, x)


def test_what_a_layer_does_may_change(warm):
    layer, x = warm
    layer.activation = "relu"
    close(layer, x)
    if isinstance(layer, PackedConv2d):
        layer.channels_last = True
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
        layer.padding = (0, 0)
        close(layer, x)


def test_sums_come_with_the_call(warm):
    layer, x = warm
    sums = dense(layer, x)
    layer.activation = "relu"
    one, other = torch.randn_like(sums), torch.randn_like(sums)
    for more in (one, other, None, one.transpose(-1, -2).contiguous().transpose(-1, -2), other, one[:1], one.double()):
        y = layer(x, more)
        wanted = F.relu(sums if more is None else sums + more)
        assert y.dtype is wanted.dtype
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    close(layer, x)


def test_a_sum_that_torch_adds_is_no_call_like_it(warm):
    layer, x = warm
    layer.activation = "relu"
    first = layer(x, torch.full((1,), -1e3))  # broadcast
    assert not first.any()
    close(layer, x)


def test_a_sum_has_a_gradient_no_more_than_the_input(warm):
    layer, x = warm
    with pytest.raises(Exception, match="packed layers are for inference"):
        layer(x, torch.zeros_like(dense(layer, x)).requires_grad_()).sum().backward()


def test_weights_may_not_change(warm):
    layer, x = warm
    layer.weight_values.mul_(2)
    with pytest.raises(FormatError, match="were changed in place or exchanged"):
        layer(x)


def test_a_change_of_any_tensor_is_seen(warm):
    layer, x = warm
    for name, tensor in layer.named_buffers():
        if name != "bias" and tensor.numel():
            other = copy.deepcopy(layer)
            close(other, x)
            close(other, x)
            with torch.no_grad():
                other._buffers[name].view(torch.uint8).add_(0)
            with pytest.raises(FormatError, match="were changed in place or exchanged"):
                other(x)
    close(layer, x)


def test_exchanged_for_one_call(warm):
    layer, x = warm
    state = {"weight_values": layer.weight_values * 2}
    with pytest.raises(FormatError, match="were changed in place or exchanged"):
        torch.func.functional_call(layer, state, (x,))
    close(layer, x)


def test_made_in_inference_mode(spared):
    with torch.inference_mode():
        layer, x = linear(), torch.randn(5, 32)
        close(layer, x)
        close(layer, x)
    x = torch.randn(5, 32)
    close(layer, x)
    close(copy.deepcopy(layer), x)
    assert isa() == "python" or any(spared)


def test_copies_are_as_large_as_the_layer(warm):
    layer, x = warm
    size = sum(t.nbytes for t in layer.buffers())
    stored = pickle.dumps(layer)
    assert len(stored) < size + 12000
    close(pickle.loads(stored), x)


def test_another_state(warm):
    layer, x = warm
    other = copy.deepcopy(layer)
    with torch.no_grad():
        state = {n: t * 2 if n == "weight_values" else t for n, t in other.state_dict().items()}
    layer.load_state_dict(state)
    close(layer, x)
    close(other, x)
    assert not torch.equal(layer(x), other(x))


def test_shared_memory_is_read_where_it_lies(warm):
    layer, x = warm
    layer.share_memory()
    close(layer, x)
    close(layer, x)


def test_autocast_gradients_and_copies(warm, spared):
    layer, x = warm
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert not any(spared)
    with pytest.raises(Exception, match="packed layers are for inference"):
        layer(x.clone().requires_grad_()).sum().backward()
    close(copy.deepcopy(layer), x)


def test_another_number_of_threads(warm, spared):
    layer, x = warm
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        close(layer, x)
    finally:
        torch.set_num_threads(before)
    assert not any(spared)


def test_negated_inputs(warm):
    layer, x = warm
    negated = torch._neg_view(x)
    for residual in (None, torch._neg_view(dense(layer, x))):
        y = layer(negated, residual)
        close(layer, x, -y + 2 * shift(layer, x) if residual is None else -y - dense(layer, x) + 2 * shift(layer, x))


def shift(layer, x):
    """What the bias adds to the output."""
    return dense(layer, torch.zeros_like(x))


def test_a_model_in_a_compiled_graph_after_calls(warm):
    layer, x = warm
    run = torch.compile(nn.Sequential(layer), backend="eager", fullgraph=True)
    close(layer, x, run(x))
    layer(x[:1])  # what the layer remembers is no part of the graph
    with torch.compiler.set_stance("fail_on_recompile"):
        close(layer, x, run(x))
