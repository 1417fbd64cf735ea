"""What follows the sums: bias, activation, residual, store; and the second pass over lines that were cut."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(z):
    """Without overflow in the exponential."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def apply(z, NAME: tl.constexpr):
    """The activation; NaN stays NaN."""
    if NAME == "relu":
        z = tl.where(z < 0, 0.0, z)
    if NAME == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    if NAME == "gelu_tanh":  # (1 + tanh(u)) / 2 is sigmoid(2 u)
        z = z * sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    if NAME == "silu":
        z = z * sigmoid(z)
    return z


@triton.jit
def finish(
    sums, t, n, tokens, size, y, z, bias, residual, residual_stride,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Store a tile of sums ``[len(t), len(n)]`` as ``act(sums + bias) + residual``; ``y`` and ``z`` are contiguous."""
    inside = (t < tokens)[:, None] & (n < size)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=n < size, other=0.0).to(sums.dtype)[None, :]
    rows = t.to(tl.int64)[:, None]
    if KEEP:
        tl.store(z + rows * size + n[None, :], sums.to(z.dtype.element_ty), mask=inside)
    sums = apply(sums, ACTIVATION)
    if HAS_RESIDUAL:
        more = tl.load(residual + rows * residual_stride + n[None, :], mask=inside, other=0.0)
        sums += more.to(sums.dtype)
    tl.store(y + rows * size + n[None, :], sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def combine_kernel(
    partial, splits, y, z, bias, residual, residual_stride, tokens, size,
    OUTER: tl.constexpr, BT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, KEEP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (cut line, token tile): add the partial sums of the line in order of their slots, then finish."""
    line = tl.load(splits + 3 * tl.program_id(0))
    first = tl.load(splits + 3 * tl.program_id(0) + 1)
    count = tl.load(splits + 3 * tl.program_id(0) + 2)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    n = tl.arange(0, OUTER)
    sums = tl.zeros((BT, OUTER), dtype=tl.float64 if WIDE else tl.float32)
    for i in range(count):
        row = (first + i).to(tl.int64) * tokens + t
        sums += tl.load(partial + row[:, None] * OUTER + n[None, :], mask=(t < tokens)[:, None], other=0.0)
    finish(sums, t, line * OUTER + n, tokens, size, y, z, bias, residual, residual_stride,
           HAS_BIAS, HAS_RESIDUAL, ACTIVATION, KEEP, WIDE)  # fmt: skip


def combine(partial, splits, y, z, *, shape, outer, finish):
    """The second pass of a product; limited by reading the partial sums, so no tuning."""
    tokens = shape["tokens"]
    tile = 4 if tokens <= 4 else 16
    grid = (splits.shape[0], triton.cdiv(tokens, tile))
    combine_kernel[grid](
        partial, splits, y, z, finish["bias"], finish["residual"], finish["residual_stride"], tokens, shape["size"],
        OUTER=outer, BT=tile, **{name: finish[name] for name in FLAGS}, num_warps=4,
    )  # fmt: skip


FLAGS = ("HAS_BIAS", "HAS_RESIDUAL", "ACTIVATION", "KEEP", "WIDE")
