"""Packed layers as ordinary modules: states, copies, refusals, gradients, traces."""

import copy
import io
import pickle

import pytest
import torch
from tests.unit.runtime.models import always, mlp, net, thin
from torch import nn

import openwork as ow
from openwork.errors import FormatError, OpenworkError
from openwork.formats import BlockSparse, Csr
from openwork.kernels.ops import conv2d_now, linear_now
from openwork.runtime import PackedConv2d, PackedLinear


def some(rows=16, cols=48, seed=1):
    torch.manual_seed(seed)
    matrix = torch.randn(rows, cols) * (torch.rand(rows, cols) < 0.3)
    return Csr.pack(matrix, matrix != 0)


def window(**changes):
    return {"kernel_size": (2, 2), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | changes


def test_a_packed_model_has_no_parameters_that_train():
    packed = always(net())
    assert not [n for n, p in packed.named_parameters() if p.requires_grad]
    assert not [n for n, m in packed.named_modules() if isinstance(m, PackedLinear) and list(m.parameters())]
    assert "Csr(" in repr(packed) or "Bitmap(" in repr(packed)
    assert packed.fc.density == pytest.approx(packed.fc.format.density)


def test_state_dicts_carry_another_pattern_over():
    """The number of entries differs, so the buffers change their shape; strict names and shapes are kept."""
    one, two = (always(thin(nn.Sequential(nn.Linear(48, 16), nn.Linear(16, 8)), d)) for d in (0.2, 0.3))
    x = torch.randn(7, 48)
    assert not torch.equal(one(x), two(x))
    state = two.state_dict()
    assert not any("many" in n or "few" in n for n in state)
    for assign in (False, True):
        again = copy.deepcopy(one)
        assert str(again.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
        for count in (7, 2):
            assert torch.equal(again(x[:count]), two(x[:count]))
        assert torch.equal(again.state_dict()["0.weight_values"], state["0.weight_values"])


def test_a_part_of_a_matrix_is_not_loaded():
    packed = always(mlp())
    x = torch.randn(5, 48)
    before, state = packed(x), packed.state_dict()
    part = {n: torch.zeros_like(t) if n.startswith("0.") else t for n, t in state.items() if n != "0.weight_values"}
    found = packed.load_state_dict(part, strict=False)
    assert {n for n in found.missing_keys if n.startswith("0.weight")} == {n for n in state if n.startswith("0.weight")}
    assert packed[0].format.stored > 0
    with pytest.raises(RuntimeError, match="Missing key"):
        packed.load_state_dict(part)
    assert before.shape == packed(x).shape


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("0.weight_columns", lambda t: t.fill_(60_000), "columns must lie in"),
        ("0.weight_columns", lambda t: t.fill_(0), "columns must increase strictly"),
        ("0.weight_row_starts", lambda t: t.add_(7), "row_starts must begin with 0"),
        ("0.weight_values", lambda t: t.fill_(float("nan")), "NaN or infinite|not finite|must be finite"),
        ("0.weight_values", lambda t: t.half(), "values must be float32"),
        ("0.weight_values", lambda t: t[:-1], "columns must have the shape"),
        ("0.weight_values", lambda t: t.to("meta"), "values must be a dense tensor"),
    ],
)
def test_hostile_states_are_refused_before_a_kernel_sees_them(name, change, message):
    packed = always(thin(nn.Sequential(nn.Linear(256, 16)), 0.03))
    x = torch.randn(5, 256)
    before = packed(x)
    state = {n: t.clone() for n, t in packed.state_dict().items()}
    state[name] = change(state[name])
    with pytest.raises((FormatError, RuntimeError), match=message):
        packed.load_state_dict(state)
    assert torch.equal(packed(x), before)


def test_copies_pickles_and_files_compute_the_same():
    packed = always(net(), ow.Block(4, 1))
    packed.load_state_dict(packed.state_dict())  # versions of the tensors differ from those of a fresh copy
    x = torch.randn(2, 3, 9, 9)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    for again in (
        copy.deepcopy(packed),
        copy.copy(packed),
        pickle.loads(pickle.dumps(packed)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(again(x), packed(x))
        assert again.openwork_plan == packed.openwork_plan


def test_a_pickle_from_another_instruction_set_is_ordered_again():
    packed = always(thin(nn.Sequential(nn.Linear(64, 64)), block=(32, 32)), ow.Block(32, 32))
    x, wanted = torch.randn(9, 64), None
    wanted = packed(x)
    layer = packed[0]
    layer._isa = "elsewhere"
    layer.many_0 = torch.zeros(3)
    assert torch.equal(copy.deepcopy(packed)(x), wanted)


def test_weights_changed_in_place_are_noticed():
    """The kernel reads its own order of the weights, so a change of the stored ones would do nothing."""
    for name in ("weight_values", "many_0", "many_1"):
        packed = always(mlp())
        with torch.no_grad():
            getattr(packed[0], name).zero_()
        with pytest.raises(FormatError, match="its packed weights were changed in place"):
            packed(torch.randn(3, 48))
    packed = always(net())
    packed.conv1.weight_values.mul_(2)
    with pytest.raises(FormatError, match="its packed weights were changed in place"):
        packed(torch.randn(1, 3, 8, 8))
    packed = always(mlp())
    with torch.no_grad():
        packed[0].bias.add_(1)  # a bias is read where it lies
    assert packed(torch.randn(3, 48)).shape == (3, 24)


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double, nn.Module.bfloat16, lambda m: m.to("meta")])
def test_moving_and_converting_is_refused_by_name(change):
    packed = always(mlp())
    x = torch.randn(3, 48)
    before = packed(x)
    with pytest.raises(FormatError, match="packed weights stay on the processor in the type they are stored in"):
        change(packed)
    assert torch.equal(packed(x), before)


def test_what_changes_nothing_is_allowed():
    packed, x = always(mlp()), torch.randn(3, 48)
    before = packed(x)
    for same in (packed.float(), packed.to("cpu"), packed.cpu(), packed.to_empty(device="cpu"), packed.share_memory()):
        assert torch.equal(same(x), before)
    assert not packed.train()(x).requires_grad


def test_gradients_are_refused_in_backward():
    for packed, x in ((always(mlp()), torch.randn(3, 48)), (always(net()), torch.randn(1, 3, 8, 8))):
        y = packed(x.requires_grad_())
        assert torch.equal(y, packed(x.detach()))
        with pytest.raises(OpenworkError, match="packed layers are for inference and have no gradient"):
            y.sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_traces_and_inference_mode():
    packed, x = always(mlp()), torch.randn(9, 48)
    traced = torch.jit.trace(packed, torch.randn(9, 48))
    assert torch.equal(traced(x), packed(x))
    with torch.inference_mode():
        made = always(mlp(density=0.3))
        y = made(x)
    assert torch.equal(made(x), y)


def test_wrong_inputs_are_refused():
    linear, conv = PackedLinear(some(), None, "column"), PackedConv2d(some(), None, "column", **window())
    for x in (torch.randn(3, 47), torch.tensor(1.0)):
        with pytest.raises(FormatError, match="PackedLinear: the last dimension must be 48"):
            linear(x)
    for x in (torch.randn(1, 11, 5, 5), torch.randn(12, 5)):
        with pytest.raises(FormatError, match="PackedConv2d: the input must have 12 channels in dimension -3"):
            conv(x)
    with pytest.raises(OpenworkError, match="sparse_conv2d: the input .* is smaller than the kernel"):
        conv(torch.randn(1, 12, 1, 5))
    with pytest.raises(OpenworkError, match="sparse_linear: the input must be floating point, got torch.int64"):
        linear(torch.ones(2, 48, dtype=torch.long))
    with pytest.raises(OpenworkError, match="the residual must have the shape of the output"):
        linear(torch.randn(2, 48), torch.randn(2, 15))
    x = torch.randn(2, 12, 5, 5)
    assert torch.equal(conv(x[0], torch.ones(16, 4, 4)), conv(x, torch.ones(2, 16, 4, 4))[0])


def test_operators_check_shapes_themselves():
    """Exported programs call them without the layer."""
    linear, conv = PackedLinear(some(), None, "column"), PackedConv2d(some(), None, "column", **window())
    weights, sizes = linear._weights("many")
    with pytest.raises(OpenworkError, match="the weights take 48 inputs, the input .* brings 40"):
        linear_now(torch.randn(2, 40), "column", weights, sizes, None, None, "none")
    with pytest.raises(OpenworkError, match="the bias must have shape"):
        linear_now(torch.randn(2, 48), "column", weights, sizes, torch.zeros(3), None, "none")
    with pytest.raises(OpenworkError, match="activation must be one of none, relu"):
        linear_now(torch.randn(2, 48), "column", weights, sizes, None, None, "tanh")
    weights, sizes = conv._weights("many")
    end = (None, None, "none", *([1, 1] for _ in range(4)))
    with pytest.raises(OpenworkError, match="the weights take 48 inputs, the input .* brings 12"):
        conv2d_now(torch.randn(1, 12, 5, 5), "column", weights, sizes, *end)
    with pytest.raises(OpenworkError, match=r"sparse_conv2d: the input must be \(batch, channels, height, width\)"):
        conv2d_now(torch.randn(12, 5, 5), "column", weights, sizes, *end)


def test_layers_that_contradict_themselves_are_refused():
    with pytest.raises(FormatError, match="activation must be one of"):
        PackedLinear(some(), None, "column", "tanh")
    for bias in (torch.zeros(15), torch.zeros(16, dtype=torch.long)):
        with pytest.raises(FormatError, match="the bias must hold 16 floating point numbers"):
            PackedLinear(some(), bias, "column")
    for wrong in ({"stride": (0, 1)}, {"padding": (-1, 0)}, {"kernel_size": (5, 5)}, {"kernel_size": (0, 0)}):
        with pytest.raises(FormatError, match="a matrix with 48 columns does not fit the window"):
            PackedConv2d(some(), None, "column", **window(**wrong))


def test_low_precision_stores():
    for dtype, limit in ((torch.bfloat16, 2e-2), (torch.int8, 5e-2)):
        for structure in (ow.Block(16, 16), ow.Element()):
            model = mlp(density=0.6, block=(16, 16))
            packed, x = always(model, structure, dtype=dtype), torch.randn(20, 48)
            assert packed[0].format.dtype == dtype
            for count in (20, 2):
                gap = (packed(x[:count]) - model(x[:count])).abs().max() / model(x[:count]).abs().max()
                assert 0 < gap < limit
    assert isinstance(always(mlp(block=(16, 16)), ow.Block(16, 16))[0].format, BlockSparse)
