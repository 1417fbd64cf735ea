"""Which tile sizes the autotuner tries, and why.

bf16 and fp16, Hopper first: a warpgroup of four warps issues matrix instructions of 64 rows, so tiles of 64 tokens a
warpgroup are the natural unit: 128 tokens with 4 or 8 warps, 256 with 8. A K-step of 64 half-precision numbers is 128
bytes, the widest swizzle of shared memory; narrower blocks are gathered until a step is that wide. The address of a
tile is itself loaded, so the pipeliner gives half of the stages to it: five stages are three buffers of 16 to 64 KiB,
which fits the 227 KiB of an H100 and mostly the 163 KiB of an A100. fp32 without tf32 runs on ordinary units:
registers limit it, so tiles are smaller and K-steps are 16 or 32.

Few tokens make small tiles: a tile is never larger than the tokens, rounded up to a power of two. The lists stay short
because every entry is compiled and timed once for each pair of sides, token count (rounded up) and dtype.
"""

import triton

from openwork.gpu.interpreter import interpreted

REGISTERS = 64
"""Accumulators a thread may hold: at 128, the compiled kernels (sm_90) were seen to spill around their epilogue."""
SHARED = 200 * 1024
"""Bytes of shared memory that a configuration may ask for; the autotuner itself skips what the GPU at hand cannot
give."""

PRODUCT = [
    triton.Config({"BM": 16, "BK": 128}, num_warps=4, num_stages=5),
    triton.Config({"BM": 32, "BK": 64}, num_warps=4, num_stages=5),
    triton.Config({"BM": 64, "BK": 64}, num_warps=4, num_stages=5),
    triton.Config({"BM": 128, "BK": 64}, num_warps=4, num_stages=5),
    triton.Config({"BM": 128, "BK": 64}, num_warps=8, num_stages=7),
    triton.Config({"BM": 128, "BK": 128}, num_warps=8, num_stages=5),
    triton.Config({"BM": 256, "BK": 64}, num_warps=8, num_stages=5),
    triton.Config({"BM": 16, "BK": 32}, num_warps=4, num_stages=5),
    triton.Config({"BM": 64, "BK": 32}, num_warps=4, num_stages=5),
    triton.Config({"BM": 64, "BK": 16}, num_warps=8, num_stages=5),
    triton.Config({"BM": 128, "BK": 16}, num_warps=8, num_stages=5),
]

DECODE = [
    triton.Config({"BN": 16, "BK": 64}, num_warps=2, num_stages=3),
    triton.Config({"BN": 16, "BK": 128}, num_warps=4, num_stages=3),
    triton.Config({"BN": 32, "BK": 64}, num_warps=4, num_stages=3),
    triton.Config({"BN": 64, "BK": 64}, num_warps=8, num_stages=3),
]

OUTER_CONFIGS = [
    triton.Config({"BT": 32}, num_warps=4, num_stages=4),
    triton.Config({"BT": 64}, num_warps=4, num_stages=3),
    triton.Config({"BT": 64}, num_warps=8, num_stages=4),
    triton.Config({"BT": 16}, num_warps=8, num_stages=3),
]


def choose(configs, named, **more):
    """The entries of ``PRODUCT`` for one call: by tokens, dtype, registers and shared memory, at most four."""
    given = {**named, **more}
    size, outer, bucket = given["x"].element_size(), given["OUTER"], given["bucket"]
    fitting = [
        c for c in configs
        if (c.kwargs["BK"] >= 64) == (size == 2)
        and c.kwargs["BM"] <= max(16, bucket)
        and c.kwargs["BM"] * outer <= 32 * c.num_warps * REGISTERS * 4 // max(4, size)
        and (c.num_stages // 2 + 1) * c.kwargs["BK"] * (c.kwargs["BM"] + outer) * size <= SHARED
    ]  # fmt: skip
    return sorted(fitting, key=lambda c: -c.kwargs["BM"])[:4] or configs[7:8]


def narrow(configs, named, **more):
    """The entries of ``DECODE`` whose outputs exist and whose sums fit the registers."""
    given = {**named, **more}
    fitting = [
        c for c in configs
        if c.kwargs["BN"] <= given["OUTER"]
        and given["TOKENS"] * c.kwargs["BN"] * c.kwargs["BK"] <= 32 * c.num_warps * REGISTERS
    ]  # fmt: skip
    return fitting or configs[:1]


def shallow(configs, named, **more):
    """The entries of ``OUTER_CONFIGS`` for one dtype: fp32 takes short steps; 16 or 32 rows need no eight warps."""
    given = {**named, **more}
    size, height = given["x"].element_size(), given["HEIGHT"]
    half = [c for c in configs if c.kwargs["BT"] >= 32 and (c.num_warps == 4 or height >= 64)]
    full = [c for c in configs if c.kwargs["BT"] <= 32]
    return half if size == 2 else full


def launch(plain, tuned, grid, default, *args, **constants):
    """Run a kernel: tuned on a GPU, with one small configuration under the interpreter, where timing means nothing."""
    if "PRECISION" in plain.arg_names:
        constants["UPCAST"] = interpreted()
    if interpreted():
        plain[grid](*args, **constants, **default)
    else:
        tuned[grid](*args, **constants)
