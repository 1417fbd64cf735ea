"""A block-sparse matrix, its dense twin in float64, and what rounding allows, for the tests of products."""

import torch

from openwork.gpu import BlockIndex

ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Relative to the sum of magnitudes. Half types round once (2**-11, 2**-8), and Triton's interpreter cuts instead."""


def matrix(rows, cols, height, width, dtype=torch.float32, device="cpu", kept=None, density=0.5):
    """Index, values and dense float64 weight."""
    if kept is None:
        kept = torch.rand(-(-rows // height), -(-cols // width)) < density
    index = BlockIndex.of_blocks(kept, rows, cols, height, width).to(device)
    values = index.values_of(torch.randn(rows, cols, device=device).to(dtype))
    return index, values, index.dense(values).double()


def close(found, expected, magnitude):
    """Every entry within rounding of the float64 answer; ``magnitude`` is the same sum over absolute values."""
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    error = (found.double() - expected).abs()
    allowed = ROUNDING[found.dtype] * (magnitude + expected.abs()) + 1e-30
    worst = (error / allowed).max().item() if error.numel() else 0.0
    assert worst <= 1, f"{worst:.2f} times what rounding explains"
