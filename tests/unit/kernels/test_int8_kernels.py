"""Products of int8 with int8 against whole numbers in float64, on every instruction set."""

import copy
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from tests.unit.kernels.making import ACTIVATIONS, block, close, conv, expected, linear

from openwork.errors import FormatError, OpenworkError
from openwork.formats import BlockSparse
from openwork.kernels import kinds_of, layout_of, multiplies_int8, native
from openwork.kernels.dense import dense_of
from openwork.kernels.rounding import round_tokens
from openwork.runtime import PackedConv2d, PackedLinear

TOKENS = [0, 1, 2, 3, 4, 5, 13, 14, 15, 40, 97]
needs_dots = pytest.mark.skipif(native() is None or not native().dots(), reason="no dot products of int8 here")


def made(rows, cols, height=32, width=32, density=0.4):
    return block(rows, cols, height, width, torch.int8, density, by_row=True)


def wanted(x, fmt, bias=None):
    return F.linear(round_tokens(x).double(), fmt.unpack().double(), None if bias is None else bias.double())


@pytest.mark.parametrize(
    "shape", [(64, 64, 32, 32), (70, 52, 16, 4), (33, 136, 32, 8), (96, 300, 48, 20), (128, 64, 64, 64)], ids=str
)
def test_every_shape_and_epilogue(isa, shape):
    ends = cycle((act, bias, more) for act in ACTIVATIONS for bias in (True, False) for more in (True, False))
    rows, cols, height, width = shape
    fmt = made(rows, cols, height, width)
    for count in TOKENS:
        for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            activation, biased, more = next(ends)
            x, bias = torch.randn(count, cols).to(dtype), torch.randn(rows) if biased else None
            residual = torch.randn(count, rows).to(dtype) if more else None
            layer = PackedLinear(fmt, bias, "int8", activation)
            got = layer(x, residual)
            assert got.dtype == dtype
            close(got.float(), expected(wanted(x.float(), fmt, bias), residual, activation), limit)
            assert torch.equal(got, layer(x, residual))
            if residual is None:  # the repeated call that is spared its checks
                assert torch.equal(layer(-x), layer(-x.clone()))


def test_rows_that_lie_apart_and_batches(isa):
    fmt = made(64, 96)
    layer = PackedLinear(fmt, None, "int8")
    wide = torch.randn(2, 9, 200)
    close(layer(wide[..., 50:146]), wanted(wide[..., 50:146], fmt))
    close(layer(wide[0, :, :96].T.contiguous().T), wanted(wide[0, :, :96], fmt))


def test_numbers_of_every_size(isa):
    """A token's scale is its own; zeros stay zeros, what is not finite ruins its own token only."""
    fmt = made(64, 64, density=2)
    x = torch.randn(8, 64)
    x *= torch.tensor([1e-30, 1e-3, 1.0, 1e4, 1e30, 0.0, 1.0, 1.0])[:, None]
    x[6, 5], x[7, 9] = float("nan"), float("-inf")
    y, dense = PackedLinear(fmt, None, "int8")(x), x[:5].double() @ fmt.unpack().double().T
    for got, want in zip(y[:5].double(), dense, strict=True):
        assert float((got - want).abs().max() / want.abs().max()) < 0.03
    assert not y[5].any()
    assert y[6:].isnan().all()
    tiny = torch.full((1, 64), 1e-42)
    assert torch.isfinite(PackedLinear(fmt, None, "int8")(tiny)).all()


def test_the_largest_sums_do_not_overflow(isa):
    matrix = torch.ones(16, 1 << 16)
    fmt = BlockSparse.pack(matrix, matrix != 0, height=16, width=1 << 10, dtype=torch.int8, by_row=True)
    y = PackedLinear(fmt, None, "int8")(torch.cat([torch.ones(1, 1 << 16), -torch.ones(1, 1 << 16)]))
    torch.testing.assert_close(y, torch.tensor([[65536.0] * 16, [-65536.0] * 16]))


@needs_dots
def test_layouts_hold_the_matrix_and_travel():
    fmt, x = made(70, 64, 32, 16), torch.randn(7, 64)
    layout = layout_of(fmt, "int8", run=64)
    assert layout.kind == "int8"
    torch.testing.assert_close(dense_of(layout.kind, layout.tensors, layout.sizes, 64), fmt.unpack())
    y, module = linear(x, layout), native()
    layer, before = PackedLinear(fmt, None, "int8"), module.isa()
    assert torch.equal(layer(x), y)
    try:  # as on a processor without such products
        assert module.use("avx2" if "avx2" in module.isas() else "portable")
        close(linear(x, layout), y.double())
        twin = copy.deepcopy(layer)
        assert twin.kind == "int8"
        close(twin(x), y.double())
        close(twin(x), y.double())
        with pytest.raises(ValueError, match="the weights lie in an order that the .* kernels cannot read"):
            weights = PackedLinear(fmt, None, "int8")._ready("many").arguments()
            module.int8_linear((*weights[:8], 2, 0), (0, 0, 0), (0, 0, 0, 64, 64, 64), 1)
    finally:
        module.use(before)
    assert torch.equal(copy.deepcopy(twin)(x), y)


@needs_dots
def test_threads_compute_the_same():
    fmt = made(512, 512)
    layer, before = PackedLinear(fmt, torch.randn(512), "int8", "gelu"), torch.get_num_threads()
    try:
        for count in (1, 3, 64, 200):
            x = torch.randn(count, 512)
            torch.set_num_threads(1)
            one = layer(x)
            torch.set_num_threads(3)
            assert torch.equal(layer(x), one)
    finally:
        torch.set_num_threads(before)


def test_which_matrices_it_takes():
    assert multiplies_int8(made(64, 64))
    assert "int8" not in kinds_of(made(64, 64))
    refused = [
        made(64, 64, 8, 8),
        made(64, 64, 16, 2),
        block(64, 64, 32, 32, torch.int8),
        block(64, 64, 32, 32),
        made(16, (1 << 16) + 4, 16, 4, 0.01),
    ]
    for fmt in refused:
        assert not multiplies_int8(fmt)
        with pytest.raises(
            FormatError, match="int8: products of int8 take blocks stored in int8 with a scale for each"
        ):
            PackedLinear(fmt, None, "int8")
    window = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    for change in ({"kernel_size": (2, 2)}, {"padding": (0, 1)}):
        with pytest.raises(FormatError, match="PackedConv2d: int8 arithmetic takes kernels of 1 x 1 without padding"):
            PackedConv2d(made(64, 64), None, "int8", **{**window, **change})
    layout = layout_of(made(64, 64), "int8", run=64)
    if layout.kind == "int8":
        with pytest.raises(
            OpenworkError, match="sparse_conv2d: int8 arithmetic takes kernels of 1 x 1 without padding"
        ):
            conv(torch.randn(1, 64, 4, 4), layout, None, None, "none", (1, 1), padding=(1, 1))


def pixels(x, fmt, bias):
    """A 1 x 1 convolution of rounded pixels in float64."""
    return wanted(x.movedim(1, -1), fmt, bias).movedim(-1, 1)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(1, 7, 9), (2, 8, 8), (3, 1, 1), (0, 5, 5), (2, 64, 64)], ids=str)
def test_pixels_are_tokens(isa, shape, order):
    ends = cycle((act, bias, more) for act in ACTIVATIONS for bias in (True, False) for more in (True, False))
    batch, *size = shape
    for fmt in (made(64, 64), made(70, 52, 16, 4)):
        for stride in ((1, 1), (2, 2), (3, 1)):
            for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
                activation, biased, more = next(ends)
                window = {"kernel_size": (1, 1), "stride": stride, "padding": (0, 0), "dilation": (1, 1)}
                layer = PackedConv2d(fmt, torch.randn(fmt.rows) if biased else None, "int8", **window)
                layer.activation = activation
                x = torch.randn(batch, fmt.cols, *size).to(dtype).contiguous(memory_format=order)
                base = pixels(x[:, :, :: stride[0], :: stride[1]].float(), fmt, layer.bias)
                residual = torch.randn(base.shape).to(dtype) if more else None
                got = layer(x, residual)
                assert got.dtype == dtype
                assert not batch or got.is_contiguous(memory_format=order)
                close(got.float(), expected(base, residual, activation), limit)
                assert torch.equal(got, layer(x, residual))  # the repeated call
                assert torch.equal(layer(-x, residual), layer((-x).clone(), residual))


def test_images_traced_and_under_autocast(isa):
    window = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    layer = PackedConv2d(made(64, 64), torch.randn(64), "int8", **window)
    x = torch.randn(2, 64, 5, 5)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    assert torch.equal(exported(x[:1]), layer(x[:1]))
    line = PackedLinear(made(64, 64), torch.randn(64), "int8")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, given in ((layer, x), (line, torch.randn(9, 64))):
            assert one(given).dtype == torch.bfloat16
            close(one(given).float(), one.float()(given.bfloat16().float()).float(), 1e-2)


def test_tracing_sees_the_same():
    layer = PackedLinear(made(64, 64), torch.randn(64), "int8")
    x = torch.randn(9, 64)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    assert torch.equal(exported(x), layer(x))
    assert torch.equal(exported(x[:3]), layer(x[:3]))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))


def test_nothing_at_all(isa):
    """No inputs, no outputs, no tokens, all zero."""
    for rows, cols in ((16, 0), (0, 16), (0, 0), (48, 32)):
        empty = torch.zeros(rows, cols)
        fmt = BlockSparse.pack(empty, empty != 0, height=16, width=4, dtype=torch.int8, by_row=True)
        for count in (0, 1, 20):
            x = torch.randn(count, cols)
            assert torch.equal(PackedLinear(fmt, None, "int8")(x), torch.zeros(count, rows))
            assert torch.equal(PackedLinear(fmt, torch.ones(rows), "int8")(x), torch.ones(count, rows))
