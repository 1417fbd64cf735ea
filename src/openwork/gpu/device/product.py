"""Many tokens: a tile of tokens times one line of blocks, on tensor cores.

``y[t, line] = sum over the blocks of the line of x[t, block's inputs] @ block``. The forward product reads block
rows, the gradient of the input block columns; only strides and tables differ.
"""

import triton
import triton.language as tl

from openwork.gpu.device.configs import PRODUCT, choose, launch
from openwork.gpu.device.finish import FLAGS, finish
from openwork.gpu.device.gather import locate, multiply


@triton.jit
def product_kernel(
    x, values, others, places, items, y, z, partial, bias, residual,
    x_stride, residual_stride, tokens, inner_size, size, n_items, bucket,
    INNER: tl.constexpr, OUTER: tl.constexpr, SK: tl.constexpr, SN: tl.constexpr, GATHER: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Program: one item times one tile of ``BM`` tokens; items change fastest, so a tile of ``x`` stays in L2."""
    item = tl.program_id(0) % n_items
    line = tl.load(items + 4 * item)
    start = tl.load(items + 4 * item + 1)
    stop = tl.load(items + 4 * item + 2)
    slot = tl.load(items + 4 * item + 3)
    t = (tl.program_id(0) // n_items) * BM + tl.arange(0, BM)
    n = tl.arange(0, OUTER)
    x_rows = x + (t.to(tl.int64) * x_stride)[:, None]
    known = (t < tokens)[:, None]
    sums = tl.zeros((BM, OUTER), dtype=tl.float64 if WIDE else tl.float32)
    for s in range(0, (stop - start) * INNER, BK):
        at, weight, inside = locate(s, start, stop, others, places, inner_size, INNER, OUTER, SK, BK, GATHER)
        a = tl.load(x_rows + at[None, :], mask=known & inside[None, :], other=0.0)
        b = tl.load(values + weight[:, None] + (n * SN)[None, :], mask=inside[:, None], other=0.0)
        sums = multiply(a, b, sums, PRECISION, UPCAST)
    if slot < 0:
        finish(sums, t, line * OUTER + n, tokens, size, y, z, bias, residual, residual_stride,
               HAS_BIAS, HAS_RESIDUAL, ACTIVATION, KEEP, WIDE)  # fmt: skip
    else:
        row = slot.to(tl.int64) * tokens + t
        tl.store(partial + row[:, None] * OUTER + n[None, :], sums, mask=known)


tuned = triton.autotune(
    configs=PRODUCT, key=["bucket", "INNER", "OUTER"], prune_configs_by={"early_config_prune": choose}
)(product_kernel)


def product(x, values, others, places, items, y, z, partial, *, shape, layout, finish, gather, precision):
    """Launch over items and token tiles."""
    n_items, tokens = items.shape[0], shape["tokens"]

    def grid(meta):
        return (n_items * triton.cdiv(tokens, meta["BM"]),)

    launch(
        product_kernel, tuned, grid, {"BM": 32, "BK": 64},
        x, values, others, places, items, y, z, partial, finish["bias"], finish["residual"],
        x.stride(0), finish["residual_stride"], tokens, shape["inner_size"], shape["size"], n_items,
        triton.next_power_of_2(tokens),
        **layout, GATHER=gather, **{name: finish[name] for name in FLAGS}, PRECISION=precision,
    )  # fmt: skip
