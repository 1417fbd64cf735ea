"""Sparse convolutions against float64: windows, batches, memory formats, epilogues and instruction sets."""

from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from tests.unit.kernels.making import ACTIVATIONS, STORES, block, close, conv, expected, layouts

from openwork.kernels import ops

# in, out, height, width, batch, kernel, stride, padding, dilation
WINDOWS = [
    (16, 32, 9, 14, 2, (3, 3), (1, 1), (1, 1), (1, 1)),
    (24, 40, 7, 7, 3, (3, 3), (2, 2), (1, 1), (1, 1)),
    (8, 16, 20, 33, 1, (5, 3), (1, 3), (2, 0), (1, 2)),
    (70, 33, 6, 5, 2, (1, 1), (1, 1), (0, 0), (1, 1)),
    (70, 33, 6, 5, 2, (1, 1), (2, 2), (0, 0), (1, 1)),
    (20, 32, 1, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    (4, 16, 3, 40, 1, (1, 5), (1, 1), (0, 2), (1, 1)),
    (16, 16, 14, 14, 1, (3, 3), (1, 1), (18, 18), (18, 18)),
    (5, 7, 1, 1, 2, (11, 11), (1, 1), (5, 5), (1, 1)),
    (3, 64, 12, 12, 5, (4, 4), (4, 4), (0, 0), (1, 1)),
    (3, 8, 9, 9, 1, (7, 7), (2, 2), (3, 3), (1, 1)),
    (6, 16, 5, 5, 9, (3, 3), (1, 1), (4, 3), (1, 1)),
    (8, 8, 3, 5, 1, (2, 2), (7, 9), (9, 9), (3, 5)),
]
BLOCKS = [(32, 32), (16, 8), (4, 1), (1, 2)]


def weight_of(fmt, channels, kernel):
    return fmt.unpack().double().view(fmt.rows, *kernel, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", STORES, ids=str)
def test_every_window(isa, dtype):
    for window in WINDOWS if dtype == torch.float32 else WINDOWS[3:5]:
        try_window(window, dtype)


def try_window(window, dtype):
    channels, outputs, height, width, batch, kernel, *rest = window
    ends = cycle((act, last) for act in ACTIVATIONS for last in (False, True))
    for size in BLOCKS:
        fmt = block(outputs, channels * kernel[0] * kernel[1], *size, dtype)
        for layout in layouts(fmt, channels):
            for _ in range(2):
                activation, last = next(ends)
                form = torch.channels_last if last else torch.contiguous_format
                x = torch.randn(batch, channels, height, width).contiguous(memory_format=form)
                bias = torch.randn(outputs)
                product = F.conv2d(x.double(), weight_of(fmt, channels, kernel), bias.double(), *rest)
                residual = torch.randn_like(product, dtype=torch.float32) if batch != 2 else None
                y = conv(x, layout, bias, residual, activation, kernel, *rest)
                close(y, expected(product, residual, activation))
                both = x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
                assert y.is_contiguous(memory_format=form) or both


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_every_length(isa, threads, monkeypatch):
    """Rows of outputs that are no whole vectors are written as such where another row follows: channels and bands of
    other threads stay as they are."""
    monkeypatch.setattr(ops, "WORTH", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for width in (*range(1, 20), 31, 32, 33, 47):
            for height in (1, 2, 9):
                fmt = block(48, 16 * 9, 16, 16, density=2)
                (layout, *_) = layouts(fmt, 16)
                x, bias = torch.randn(2, 16, height, width), torch.randn(48)
                product = F.conv2d(x.double(), weight_of(fmt, 16, (3, 3)), bias.double(), padding=1)
                residual = torch.randn_like(product, dtype=torch.float32) if width % 2 else None
                rest = ((1, 1), (1, 1), (1, 1))
                y = conv(x, layout, bias, residual, "relu", (3, 3), *rest)
                close(y, expected(product, residual, "relu"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", STORES[1:], ids=str)
def test_bfloat16_images_through_blocks(isa, dtype):
    """Where the processor multiplies bfloat16 itself: runs of outputs of every length, one and two in a tile."""
    windows = [w for w in WINDOWS if w[0] % 2 == 0]
    windows += [
        (32, 70, h, w, 2, (3, 3), (1, 1), (1, 1), (1, 1)) for h, w in ((3, 14), (2, 16), (1, 17), (5, 33), (4, 47))
    ]
    ends = cycle((act, last) for act in ACTIVATIONS for last in (False, True))
    for channels, outputs, height, width, batch, kernel, *rest in windows:
        for size in ((32, 32), (64, 16), (16, 2)):
            fmt = block(outputs, channels * kernel[0] * kernel[1], *size, dtype)
            for layout in layouts(fmt, channels):
                activation, last = next(ends)
                form = torch.channels_last if last else torch.contiguous_format
                x = torch.randn(batch, channels, height, width).bfloat16().contiguous(memory_format=form)
                bias = torch.randn(outputs) if batch != 3 else None
                weight = weight_of(fmt, channels, kernel)
                product = F.conv2d(x.double(), weight, None if bias is None else bias.double(), *rest)
                residual = torch.randn_like(product).bfloat16() if batch != 2 else None
                y = conv(x, layout, bias, residual, activation, kernel, *rest)
                assert y.dtype == torch.bfloat16
                wanted = expected(product, residual, activation)
                close(
                    y, wanted, 1e-2 * max(1.0, float(product.abs().max() / wanted.abs().max()))
                )  # before it is clipped
                both = x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
                assert y.is_contiguous(memory_format=form) or both


def test_what_lay_in_scratch_memory_does_not_reach_outputs(isa):
    """Blocks that stick out over the last channel must read zeros, not what an earlier product left there."""
    dirt = layouts(block(32, 64 * 9, 32, 32), 64)[0]
    for window in WINDOWS[2:8]:
        channels, outputs, height, width, batch, kernel, *rest = window
        fmt = block(outputs, channels * kernel[0] * kernel[1], 32, 32)
        for layout in layouts(fmt, channels):
            conv(torch.full((1, 64, 14, 14), float("nan")), dirt, None, None, "none", (3, 3))
            x = torch.randn(batch, channels, height, width)
            y = conv(x, layout, None, None, "none", kernel, *rest)
            close(y, F.conv2d(x.double(), weight_of(fmt, channels, kernel), None, *rest))


def test_empty_batches_other_types_and_views(isa):
    fmt = block(16, 72, 8, 8)
    weight = weight_of(fmt, 8, (3, 3))
    for layout in layouts(fmt, 8):
        assert conv(torch.randn(0, 8, 5, 5), layout, None, None, "relu", (3, 3)).shape == (0, 16, 3, 3)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            x = torch.randn(2, 8, 5, 6).to(dtype)
            y = conv(x, layout, None, None, "none", (3, 3))
            assert y.dtype == dtype
            close(y, F.conv2d(x.double(), weight), max(torch.finfo(dtype).eps, 5e-6))
        for x in (
            torch.randn(2, 5, 6, 8).permute(0, 3, 1, 2)[:, :, ::2],
            torch.randn(1, 8, 5, 6).expand(3, 8, 5, 6),
            torch.randn(2, 16, 5, 6)[:, ::2],
            torch.randn(8, 2, 6, 5).permute(1, 0, 3, 2),
        ):
            close(conv(x, layout, None, None, "none", (3, 3)), F.conv2d(x.double(), weight))


def test_special_numbers_in_images(isa):
    """Values outside the window of an output do not touch it."""
    fmt = block(16, 72, 16, 8, density=2.0)
    weight = weight_of(fmt, 8, (3, 3))
    for layout in layouts(fmt, 8):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(1, 8, 9, 11).contiguous(memory_format=form)
            x[0, 3, 4, 5] = float("nan")
            x[0, 2, 0, 0] = float("inf")
            y = conv(x, layout, None, None, "none", (3, 3), (1, 1), (1, 1))
            wanted = F.conv2d(x.double(), weight, None, 1, 1)
            assert torch.equal(y.isfinite(), wanted.isfinite())
            close(y[y.isfinite()], wanted[y.isfinite()])


def test_windows_that_overflow_32_bits_are_refused(isa):
    """The block kernels' offsets of a window's inputs are 32-bit numbers in both layouts of an image."""
    if isa == "python":
        pytest.skip("torch's own convolution has no such offsets")
    far = 2**27
    fmt = block(16, 32, 16, 16, density=2.0)
    x = torch.randn(1, 16, 1, 2)
    dense = weight_of(fmt, 16, (2, 1))
    for layout in layouts(fmt, 16):
        for form in (torch.contiguous_format, torch.channels_last):
            image = x.contiguous(memory_format=form)
            if layout.kind == "column":
                y = conv(image, layout, None, None, "none", (2, 1), (far, 1), (far, 0), (far, 1))
                close(y, F.conv2d(x.double(), dense, None, (far, 1), (far, 0), (far, 1)))
                continue
            with pytest.raises(ValueError, match="hold more than 2\\^31 numbers; use smaller images"):
                conv(image, layout, None, None, "none", (2, 1), (far, 1), (far, 0), (far, 1))


def test_channels_last_images_of_any_place_in_memory(isa):
    """Bands of rows, tiles of positions, strides and paddings of the kernel that reads images where they lie."""
    for window in (
        (64, 48, 58, 57, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
        (32, 32, 40, 9, 2, (3, 2), (2, 3), (0, 0), (2, 1)),
        (32, 16, 3, 50, 1, (5, 1), (1, 2), (2, 0), (1, 1)),
    ):
        channels, outputs, height, width, batch, kernel, *rest = window
        fmt = block(outputs, channels * kernel[0] * kernel[1], 16, 32)
        x = torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
        product = F.conv2d(x.double(), weight_of(fmt, channels, kernel), None, *rest)
        residual = torch.randn_like(product, dtype=torch.float32)
        for layout in layouts(fmt, channels):
            y = conv(x, layout, None, residual, "relu", kernel, *rest)
            close(y, expected(product, residual, "relu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_channels_or_no_outputs(isa, dtype):
    """Every kernel once divided by the size of such an image."""
    for rows, cols in ((16, 0), (0, 16), (0, 0)):
        for height, width in ((16, 4), (4, 1)):
            fmt, bias = block(rows, cols, height, width, dtype), torch.randn(rows)
            for layout in layouts(fmt, run=max(cols, 1)):
                for x in (torch.randn(2, cols, 5, 4), torch.randn(2, 5, 4, cols).permute(0, 3, 1, 2)):
                    y = conv(x.to(dtype), layout, bias, None, "relu", (1, 1))
                    assert y.dtype == dtype
                    assert torch.equal(y.float(), torch.zeros_like(y) + bias.relu().to(dtype)[:, None, None].float())
