"""At most four tokens: weights are read once, at the speed of memory, and no tensor core is needed.

A program owns some outputs of one item. Products are kept per place, and summed over the inner dimension once at the
end.
"""

import triton
import triton.language as tl

from openwork.gpu.device.configs import DECODE, launch, narrow
from openwork.gpu.device.finish import FLAGS, finish
from openwork.gpu.device.gather import locate


@triton.jit
def decode_kernel(
    x, values, others, places, items, y, z, partial, bias, residual,
    x_stride, residual_stride, tokens, inner_size, size,
    INNER: tl.constexpr, OUTER: tl.constexpr, SK: tl.constexpr, SN: tl.constexpr, GATHER: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr,
    WIDE: tl.constexpr,
    TOKENS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Program (item, ``BN`` of its ``OUTER`` outputs)."""
    item = tl.program_id(0)
    line = tl.load(items + 4 * item)
    start = tl.load(items + 4 * item + 1)
    stop = tl.load(items + 4 * item + 2)
    slot = tl.load(items + 4 * item + 3)
    t = tl.arange(0, TOKENS)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    x_rows = x + (t.to(tl.int64) * x_stride)[:, None]
    known = (t < tokens)[:, None]
    sums = tl.zeros((TOKENS, BN, BK), dtype=tl.float64 if WIDE else tl.float32)
    for s in range(0, (stop - start) * INNER, BK):
        at, weight, inside = locate(s, start, stop, others, places, inner_size, INNER, OUTER, SK, BK, GATHER)
        a = tl.load(x_rows + at[None, :], mask=known & inside[None, :], other=0.0).to(sums.dtype)
        b = tl.load(values + weight[None, :] + (n * SN)[:, None], mask=inside[None, :], other=0.0).to(sums.dtype)
        sums += a[:, None, :] * b[None, :, :]
    total = tl.sum(sums, axis=2)
    if slot < 0:
        finish(total, t, line * OUTER + n, tokens, size, y, z, bias, residual, residual_stride,
               HAS_BIAS, HAS_RESIDUAL, ACTIVATION, KEEP, WIDE)  # fmt: skip
    else:
        row = slot.to(tl.int64) * tokens + t
        tl.store(partial + row[:, None] * OUTER + n[None, :], total, mask=known)


tuned = triton.autotune(configs=DECODE, key=["INNER", "OUTER", "TOKENS", "GATHER"],
                        prune_configs_by={"early_config_prune": narrow})(decode_kernel)  # fmt: skip


def decode(x, values, others, places, items, y, z, partial, *, shape, layout, finish, gather, precision):
    """Launch over items and groups of outputs. Products are exact in fp32, so ``precision`` changes nothing."""
    n_items, outer = items.shape[0], layout["OUTER"]

    def grid(meta):
        return (n_items, outer // meta["BN"])

    launch(
        decode_kernel, tuned, grid, {"BN": 16, "BK": 64},
        x, values, others, places, items, y, z, partial, finish["bias"], finish["residual"],
        x.stride(0), finish["residual_stride"], shape["tokens"], shape["inner_size"], shape["size"],
        **layout, GATHER=gather, **{name: finish[name] for name in FLAGS},
        TOKENS=triton.next_power_of_2(shape["tokens"]),
    )  # fmt: skip
