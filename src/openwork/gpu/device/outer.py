"""The gradient of the weights: ``grad.T @ x``, but only at kept blocks (a sampled dense-dense product).

Neighbours of one block row share the strip of ``grad``: together they are 128 columns wide, whatever the width of a
block.
"""

import triton
import triton.language as tl

from openwork.gpu.device.configs import OUTER_CONFIGS, launch, shallow
from openwork.gpu.device.gather import multiply


@triton.jit
def outer_kernel(
    grad, x, columns, chunks, out, grad_stride, x_stride, tokens, rows, cols, count, span, bucket,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Program (chunk of blocks, range of ``span`` tokens)."""
    line = tl.load(chunks + 3 * tl.program_id(0))
    start = tl.load(chunks + 3 * tl.program_id(0) + 1)
    stop = tl.load(chunks + 3 * tl.program_id(0) + 2)
    c = tl.arange(0, BN)
    block = start + c // WIDTH
    column = tl.load(columns + block, mask=block < stop, other=0)
    at = tl.max_contiguous(tl.multiple_of(column * WIDTH + c % WIDTH, WIDTH), WIDTH)
    inside = (block < stop) & (at < cols)
    h = tl.arange(0, HEIGHT)
    n = line * HEIGHT + h
    first = tl.program_id(1) * span
    last = tl.minimum(first + span, tokens)
    sums = tl.zeros((HEIGHT, BN), dtype=tl.float64 if WIDE else tl.float32)
    for s in range(first, last, BT):
        t = s + tl.arange(0, BT)
        known = (t < last)[:, None]
        a = tl.load(
            grad + (t.to(tl.int64) * grad_stride)[:, None] + n[None, :], mask=known & (n < rows)[None, :], other=0.0
        )
        b = tl.load(x + (t.to(tl.int64) * x_stride)[:, None] + at[None, :], mask=known & inside[None, :], other=0.0)
        sums = multiply(tl.trans(a), b, sums, PRECISION, UPCAST)
    place = (tl.program_id(1).to(tl.int64) * count + block) * (HEIGHT * WIDTH) + c % WIDTH
    found = sums.to(out.dtype.element_ty)
    tl.store(out + place[None, :] + (h * WIDTH)[:, None], found, mask=(block < stop)[None, :])


tuned = triton.autotune(configs=OUTER_CONFIGS, key=["bucket", "HEIGHT", "WIDTH"],
                        prune_configs_by={"early_config_prune": shallow})(outer_kernel)  # fmt: skip


def outer(grad, x, columns, chunks, out, *, tokens, rows, cols, precision, wide):
    """Launch over chunks and ranges of tokens; ``out`` is ``[ranges, n, height, width]``."""
    cuts, count, height, width = out.shape
    span = triton.cdiv(tokens, cuts)
    launch(
        outer_kernel, tuned, lambda meta: (chunks.shape[0], cuts), {"BT": 32},
        grad, x, columns, chunks, out, grad.stride(0), x.stride(0), tokens, rows, cols, count, span,
        triton.next_power_of_2(span),
        HEIGHT=height, WIDTH=width, BN=max(128, width), WIDE=wide, PRECISION=precision,
    )  # fmt: skip
