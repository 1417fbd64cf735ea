"""Sparse linear products against float64: every layout, store, epilogue, ragged shape and instruction set."""

from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from tests.unit.kernels.making import ACTIVATIONS, STORES, block, close, expected, formats, layouts, linear

from openwork.formats import BlockSparse, Csr
from openwork.kernels import block_layout, column_layout, columns_of_blocks, layout_of
from openwork.kernels.native import native, spreads

SHAPES = [(64, 64), (70, 52), (33, 7), (5, 129)]
TOKENS = [0, 1, 2, 3, 4, 5, 7, 13, 17, 40, 97]


@pytest.mark.parametrize("dtype", STORES, ids=str)
def test_every_format_shape_and_epilogue(isa, dtype):
    """Epilogues go round, so that every one of them meets every format."""
    ends = cycle((act, bias, more) for act in ACTIVATIONS for bias in (True, False) for more in (True, False))
    tokens = TOKENS if isa != "python" else [0, 1, 5, 17]
    for rows, cols in SHAPES if dtype == torch.float32 else SHAPES[1:3]:
        for fmt in formats(rows, cols, dtype):
            matrix = fmt.unpack().double()
            for layout in layouts(fmt):
                for count in tokens:
                    activation, biased, more = next(ends)
                    x, bias = torch.randn(count, cols), torch.randn(rows) if biased else None
                    residual = torch.randn(count, rows) if more else None
                    wanted = F.linear(x.double(), matrix, None if bias is None else bias.double())
                    close(linear(x, layout, bias, residual, activation), expected(wanted, residual, activation))


def test_all_zero_full_and_single_entry(isa):
    for density in (0.0, 2.0):
        for fmt in (block(64, 48, 16, 16, density=density), block(64, 48, 4, 1, density=density)):
            for layout in layouts(fmt):
                for count in (1, 9):
                    x = torch.randn(count, 48)
                    close(linear(x, layout), x.double() @ fmt.unpack().double().T)
    mask = torch.zeros(31, 17, dtype=torch.bool)
    mask[30, 16] = True
    for layout in layouts(Csr.pack(mask.float() * 3, mask)):
        x = torch.randn(6, 17)
        y = linear(x, layout)
        assert torch.equal(y[:, 30], 3 * x[:, 16])
        assert not y[:, :30].any()


def test_tall_and_wide_matrices_cross_parts_and_chunks(isa):
    """More than 256 outputs are several parts; more than 65,536 inputs several chunks even for few tokens."""
    for fmt in (block(600, 70, 4, 1), block(320, 96, 32, 32)):
        for layout in layouts(fmt):
            for count in (2, 11):
                x = torch.randn(count, fmt.cols)
                close(linear(x, layout), x.double() @ fmt.unpack().double().T)
    mask = torch.zeros(4, 140_000, dtype=torch.bool)
    mask[:, ::997] = True
    mask[2, -1] = True
    fmt = Csr.pack(torch.randn(4, 140_000) * mask, mask)
    for layout in layouts(fmt):
        for count in (3, 5):
            x = torch.randn(count, fmt.cols)
            close(linear(x, layout), x.double() @ fmt.unpack().double().T)


@pytest.mark.parametrize("dtype", STORES, ids=str)
def test_narrow_blocks_over_many_inputs(isa, dtype):
    """Strips of one vector read tokens in panels of 256 inputs, in tiles of up to 24 tokens."""
    for cols, width in ((256, 16), (300, 16), (520, 8), (700, 5)):
        fmt = block(48, cols, 16 if isa not in ("avx2", "portable") else 8, width, dtype)
        matrix = fmt.unpack().double()
        for layout in layouts(fmt):
            for count in (5, 12, 23, 24, 25, 49) if isa != "python" else (5,):
                x = torch.randn(count, cols)
                close(linear(x, layout), x.double() @ matrix.T)
    x, fmt = torch.randn(30, 600), block(32, 520, 16, 8)
    for layout in layouts(fmt):
        x[:, 520:] = float("nan")  # beyond the view
        close(linear(x[:, :520], layout), x[:, :520].double() @ fmt.unpack().double().T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_inputs_of_other_types_keep_theirs(isa, dtype):
    fmt = block(40, 48, 8, 8)
    for layout in layouts(fmt):
        x, bias, residual = (torch.randn(s).to(dtype) for s in ((3, 4, 48), (40,), (3, 4, 40)))
        y = linear(x, layout, bias, residual, "silu")
        assert y.dtype == dtype
        wanted = F.silu(F.linear(x.double(), fmt.unpack().double(), bias.double()) + residual.double())
        close(y, wanted, 2 * max(torch.finfo(dtype).eps, 5e-6))


@pytest.mark.parametrize("dtype", STORES[1:], ids=str)
@pytest.mark.parametrize("size", [(32, 32), (64, 16), (16, 16), (64, 64), (16, 6)], ids=str)
def test_bfloat16_tokens_through_blocks(isa, size, dtype):
    """Where the processor multiplies bfloat16 itself, tiles of every number of tokens, ragged outputs and inputs."""
    ends = cycle((act, bias, more) for act in ACTIVATIONS for bias in (True, False) for more in (True, False))
    for rows, cols in ((64, 64), (70, 52), (200, 130))[: 3 if dtype == torch.bfloat16 else 2]:
        fmt = block(rows, cols, *size, dtype)
        matrix = fmt.unpack().double()
        for layout in layouts(fmt):
            for count in TOKENS if isa == "python" else [*TOKENS, 14, 15, 16, 31, 32, 33, 48, 64, 65]:
                activation, biased, more = next(ends)
                x, bias = torch.randn(count, cols).bfloat16(), torch.randn(rows) if biased else None
                residual = torch.randn(count, rows).bfloat16() if more else None
                y = linear(x, layout, bias, residual, activation)
                assert y.dtype == torch.bfloat16
                wanted = F.linear(x.double(), matrix, None if bias is None else bias.double())
                close(y, expected(wanted, residual, activation), 1e-2)  # int8 times its scale is rounded as well
                if more and count:  # a residual of another type is added in float32, not rounded
                    fine = linear(x, layout, bias, residual.float(), activation)
                    close(fine, y, 1e-2)


def test_bfloat16_views_and_special_numbers(isa):
    fmt = block(40, 48, 16, 16, torch.bfloat16, density=2.0)
    matrix = fmt.unpack().double()
    wide = torch.randn(20, 100).bfloat16()
    for layout in layouts(fmt):
        for x in (
            wide[:, 30:78],
            torch.randn(20, 48).bfloat16()[::2],
            torch.randn(48, 9).bfloat16().T,
            wide[:12, :96:2],
        ):
            close(linear(x, layout), x.double() @ matrix.T, 5e-3)
        x = torch.randn(2, 9, 48).bfloat16()
        x[1, 3, 5], x[0, 2, 7] = float("nan"), float("inf")
        y = linear(x, layout)
        assert y[1, 3].isnan().all()
        assert not y[0, 2].isfinite().any()
        x[1, 3], x[0, 2] = 0, 0
        close(linear(x, layout), x.double() @ matrix.T, 5e-3)


@pytest.mark.parametrize("dtype", STORES[1:], ids=str)
def test_bfloat16_tokens_that_lie_a_power_of_two_apart(isa, dtype):
    """They are packed where they would push each other out of the cache; what lies behind the inputs is not read."""
    for cols in (1024, 514, 52, 51):
        fmt = block(70, cols, 32, 16, dtype)
        matrix = fmt.unpack().double()
        for count in (5, 14, 15, 33):
            x = torch.full((count, 1024), float("nan")).bfloat16()[:, :cols]
            x.copy_(torch.randn(count, cols))
            for layout in layouts(fmt):
                close(linear(x, layout), x.double() @ matrix.T, 1e-2)


def test_views_are_read_where_they_lie(isa):
    fmt = block(40, 48, 8, 8)
    wide = torch.randn(20, 100)
    views = {
        "columns of a wider matrix": wide[:, 30:78],
        "every second row": torch.randn(20, 48)[::2],
        "transposed": torch.randn(48, 9).T,
        "expanded": torch.randn(1, 48).expand(9, 48),
        "three dimensions": torch.randn(4, 48, 3).transpose(1, 2),
        "one dimension": torch.randn(48),
        "every second column": torch.randn(9, 96)[:, ::2],
    }
    for layout in layouts(fmt):
        for what, x in views.items():
            y = linear(x, layout, residual=torch.ones(40).expand(*x.shape[:-1], 40))
            assert y.is_contiguous(), what
            close(y, x.double() @ fmt.unpack().double().T + 1)


def test_default_dtype_and_device_do_not_matter(isa):
    fmt, x = block(40, 48, 16, 16), torch.randn(9, 48)
    for layout in layouts(fmt):
        wanted = linear(x, layout)
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            try:
                assert torch.equal(linear(x, layout), wanted)
            finally:
                torch.set_default_dtype(torch.float32)
        with torch.device("meta"):
            assert torch.equal(linear(x, layout), wanted)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_special_numbers_pass_through_activations(isa, activation):
    """A NaN stays one, and large numbers give what torch gives."""
    special = [float("nan"), float("inf"), 0.0, 1e-30, 1e30, -1e30, -3e38, 3e38, 100.0, -100.0, 6.0, 6.5, -1.0, -88.0]
    bias = torch.tensor([*special, -float("inf")] * 3)
    fmt = block(len(bias), 32, 1, 4, density=0.0)
    tall = block(48, 32, 16, 16, density=0.0)
    for layout in (*layouts(fmt), *layouts(tall)):
        ends = bias if layout.sizes[2] == 45 else torch.cat([bias, torch.zeros(3)])
        for count in (1, 9):
            y = linear(torch.zeros(count, 32), layout, ends, None, activation)
            # Without native kernels it is torch's own float32, whose GELU of infinity depends on the processor.
            exact = ends.expand_as(y).contiguous().to(torch.float32 if isa == "python" else torch.float64)
            wanted = ACTIVATIONS[activation](exact).float()
            torch.testing.assert_close(y, wanted, rtol=2e-6, atol=1e-6, equal_nan=True)


def test_a_nan_reaches_the_outputs_that_read_it_and_no_others(isa):
    for layout in layouts(BlockSparse.pack(torch.eye(64), torch.eye(64) != 0, height=16, width=16)):
        for count in (3, 20):
            x = torch.randn(count, 64)
            x[1, 5] = float("nan")
            x[2, 40] = float("inf")
            y = linear(x, layout)
            assert torch.isnan(y[1, 5])
            assert y[2, 40] == float("inf")
            if isa == "python":  # one dense product: every output reads every input
                continue
            rest = torch.ones(count, 64, dtype=torch.bool)
            rest[1, :16] = rest[2, 32:48] = False  # the other outputs of a block read it times zero
            assert torch.equal(y[rest], x[rest])


@pytest.mark.parametrize("dtype", STORES, ids=str)
def test_half_of_the_weights_as_bits(isa, dtype):
    """With one token to four, bits say which weights are stored; places without one neither read nor write a NaN."""
    if not spreads():
        pytest.skip("these kernels read places")
    for rows, cols in (*SHAPES, (1, 1), (3, 8), (130, 515)):
        mask = torch.rand(rows, cols) < 0.5
        mask[rows // 2] = False
        fmt = Csr.pack(torch.randn(rows, cols) * mask, mask, dtype=dtype)
        mask = fmt.unpack() != 0  # some round to zero in int8
        layout = layout_of(fmt, "column", run=cols, few=True)
        assert layout.kind == "bits" or mask.float().mean() < 0.2
        for count in (0, 1, 2, 3, 4, 6):
            x, bias, more = torch.randn(count, cols), torch.randn(rows), torch.randn(count, rows)
            x[::3, cols // 2] = float("nan")
            wanted = torch.where(mask, x.double()[:, None] * fmt.unpack().double(), 0.0).sum(-1) + bias.double()
            y, wanted = linear(x, layout, bias, more, "relu"), expected(wanted, more, "relu")
            assert torch.equal(y.isnan(), wanted.isnan())
            close(y[~y.isnan()], wanted[~wanted.isnan()])


def test_layouts_of_another_instruction_set_are_refused():
    module = native()
    if module is None or len(module.isas()) < 2:
        pytest.skip("needs two instruction sets")
    before, x = module.isa(), torch.randn(9, 48)
    try:
        module.use("portable")
        layout = block_layout(torch.randn(1, 4, 48), torch.zeros(1), torch.tensor([0, 1]), 4, 48, run=48)
        assert linear(x, layout).shape == (9, 4)
        module.use(module.isas()[0])
        with pytest.raises(ValueError, match="the weights lie in an order that the .* kernels cannot read"):
            linear(x, layout)
        columns = columns_of_blocks(torch.randn(1, 3, 48), torch.zeros(1), torch.tensor([0, 1]), 3, 48, 3)
        with pytest.raises(ValueError, match="the weights lie in an order that the .* kernels cannot read"):
            linear(x, column_layout(columns))
    finally:
        module.use(before)
