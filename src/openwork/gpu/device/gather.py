"""Where the inner dimension of a line of blocks lies in memory, and the multiply-add of two tiles."""

import triton
import triton.language as tl


@triton.jit
def locate(
    s, start, stop, others, places, inner_size,
    INNER: tl.constexpr, OUTER: tl.constexpr, SK: tl.constexpr, BK: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """The blocks of a line, laid side by side, form one inner dimension; ``BK`` of it from ``s`` on.

    Narrow blocks are gathered, several to a step; wide ones are taken in parts. Gives for each of the ``BK`` places the
    index into the other operand, the offset of its weights, and whether it is inside the line and the matrix.
    """
    k = tl.arange(0, BK)
    if BK <= INNER:  # one block: scalars find it
        j = start + s // INNER
        other = tl.load(others + j)
        place = j
        if GATHER:
            place = tl.load(places + j)
        inner = s % INNER + k
        at = tl.max_contiguous(tl.multiple_of(other * INNER + inner, BK), BK)
        inside = at < inner_size
        weight = place.to(tl.int64) * (INNER * OUTER) + inner * SK
        if SK == 1:
            weight = tl.max_contiguous(tl.multiple_of(weight, BK), BK)
    else:
        j = start + s // INNER + k // INNER
        known = j < stop
        other = tl.load(others + j, mask=known, other=0)
        place = j
        if GATHER:
            place = tl.load(places + j, mask=known, other=0)
        inner = k % INNER
        # Runs of INNER neighbours, each from a multiple of INNER: the compiler cannot see it through the load.
        at = tl.max_contiguous(tl.multiple_of(other * INNER + inner, INNER), INNER)
        inside = known & (at < inner_size)
        weight = place.to(tl.int64) * (INNER * OUTER) + inner * SK
        if SK == 1:
            weight = tl.max_contiguous(tl.multiple_of(weight, INNER), INNER)
    return at, weight, inside


@triton.jit
def multiply(a, b, sums, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """``sums + a @ b``. ``UPCAST`` widens first: Triton's interpreter multiplies the bits of bf16 as integers."""
    if UPCAST:
        a = a.to(sums.dtype)
        b = b.to(sums.dtype)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)
