"""Random sparse matrices in every format, and what a product must give in float64."""

import torch
import torch.nn.functional as F

from openwork.formats import Bitmap, BlockSparse, Csr, NMSparse
from openwork.kernels import kinds_of, layout_of
from openwork.kernels.dense import dense_of
from openwork.kernels.native import native

ISAS = [*(native().isas() if native() else []), "python"]
STORES = [torch.float32, torch.bfloat16, torch.int8]
BLOCKS = [(32, 32), (64, 16), (16, 16), (16, 1), (8, 8), (4, 1), (2, 3)]
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu6": F.relu6,
}


def block(rows, cols, height, width, dtype=torch.float32, density=0.4, by_row=False):
    """Random blocks; some block rows are empty unless the density is above 1."""
    down, across = -(-rows // height), -(-cols // width)
    kept = torch.rand(down, across) < density
    if density <= 1:
        kept[down // 2 :: 3] = False
    mask = kept.repeat_interleave(height, 0).repeat_interleave(width, 1)[:rows, :cols].contiguous()
    matrix, shape = torch.randn(rows, cols) * mask, {"height": height, "width": width}
    return BlockSparse.pack(matrix, mask, **shape, dtype=dtype, by_row=by_row)


def formats(rows, cols, dtype=torch.float32):
    """One matrix of every format and shape of blocks."""
    made = [block(rows, cols, h, w, dtype) for h, w in BLOCKS]
    mask = torch.rand(rows, cols) < 0.2
    mask[:, cols // 3] = False
    matrix = torch.randn(rows, cols) * mask
    made += [Csr.pack(matrix, mask, dtype=dtype), Bitmap.pack(matrix, mask, dtype=dtype)]
    if cols % 4 == 0:
        for share in (1, 4):
            places = torch.rand(-(-rows // share), cols // 4, 4).argsort(-1) < 2
            mask = places.flatten(1).repeat_interleave(share, 0)[:rows].contiguous()
            made.append(NMSparse.pack(torch.randn(rows, cols) * mask, mask, n=2, m=4, share=share, dtype=dtype))
    return made


def layouts(fmt, run=None):
    """Every layout in which a kernel runs a format, checked against the format itself."""
    found = []
    for kind in kinds_of(fmt):
        for few in (False, True)[: 1 + (kind == "column" and run is None)]:
            layout = layout_of(fmt, kind, run=run or fmt.cols, few=few)
            matrix = dense_of(layout.kind, layout.tensors, layout.sizes, fmt.cols)
            torch.testing.assert_close(matrix, fmt.unpack(), rtol=1e-6, atol=1e-7)
            found.append(layout)
    return found


def linear(x, layout, bias=None, residual=None, activation="none"):
    return torch.ops.openwork.sparse_linear(
        x, layout.kind, list(layout.tensors), list(layout.sizes), bias, residual, activation
    )


def conv(x, layout, bias, residual, activation, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    weights, sizes = list(layout.tensors), list(layout.sizes)
    window = [list(w) for w in (kernel, stride, padding, dilation)]
    return torch.ops.openwork.sparse_conv2d(x, layout.kind, weights, sizes, bias, residual, activation, *window)


def expected(product, residual, activation):
    """The end of a product in float64."""
    return ACTIVATIONS[activation](product if residual is None else product + residual.double())


def close(found, wanted, limit=1e-5):
    """Equal within a share of the largest value; a NaN or infinity fails unless it stands at the same place."""
    assert found.shape == wanted.shape
    if wanted.numel():
        largest = float(wanted.nan_to_num(0, 0, 0).abs().max())
        torch.testing.assert_close(
            found.double(), wanted.double(), rtol=0, atol=limit * (largest + 1e-3), equal_nan=True
        )
