"""Block-sparse products on a GPU against dense cuBLAS, torch's own block-sparse (BSR) and 2:4 (cuSPARSELt) products.

    python bench/gpu_kernels.py [--seconds 540]      # one CUDA GPU, Triton; ends within the time and keeps what it has
    TRITON_INTERPRET=1 python bench/gpu_kernels.py --quick   # tiny shapes on the CPU: that everything runs, no speed

All candidates of a row are timed in turn, round after round, each by CUDA events after the L2 cache was overwritten.
``tflops`` counts the operations on kept blocks, ``dense_tflops`` those a dense product would need in the same time.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

if "--quick" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import torch
from common import write
from torch import Tensor
from torch.nn import functional as F

from openwork.errors import KernelError
from openwork.gpu import BlockIndex, block_linear, launch, ops

Calls = dict[str, Callable[[], Tensor]]
# (tokens, inputs, outputs): the usual square, prefill of an 8-billion decoder's MLP, short and single steps.
LARGE = ((4096, 4096, 4096), (2048, 4096, 14336), (2048, 14336, 4096))
SMALL = ((1, 4096, 4096), (1, 4096, 14336), (4, 4096, 14336), (32, 4096, 14336))
BLOCKS, DENSITIES = (64, 128, 32, 16), (0.1, 0.5, 0.2, 0.05)


def plan(quick: bool) -> Iterator[tuple[torch.dtype, tuple[int, int, int], int, float]]:
    """The rows, most important first: what the time does not allow is missing at the end."""
    if quick:
        yield from ((torch.float32, shape, block, 0.5) for shape in ((8, 64, 48), (2, 64, 48)) for block in (16, 32))
        yield torch.bfloat16, (8, 64, 48), 16, 0.5
        return
    for dtype, shapes in (
        (torch.bfloat16, LARGE[:1]),
        (torch.bfloat16, SMALL),
        (torch.float32, LARGE[:1]),
        (torch.bfloat16, LARGE[1:]),
        (torch.float32, SMALL[:2]),
    ):
        yield from ((dtype, shape, block, d) for shape in shapes for block in BLOCKS for d in DENSITIES)


class Timer:
    """Seconds of calls: CUDA events with a cold L2, or the wall clock under the interpreter."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.flush = torch.empty(256 * 2**20 if self.cuda else 1, dtype=torch.int8, device=device)

    def once(self, call: Callable[[], Tensor]) -> float:
        self.flush.zero_()
        if not self.cuda:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3

    def all(self, calls: Calls, rounds: int, warmup: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(warmup + rounds):
            for name, call in calls.items():
                seconds = self.once(call)
                if i >= warmup:
                    found[name].append(seconds)
        return found


def ours(x: Tensor, grad: Tensor, values: Tensor, index: BlockIndex) -> Calls:
    """The three products."""
    tables, sizes = list(index.tables), (index.rows, index.cols)
    more = (None, None, "none", False, "ieee")
    return {
        "forward": lambda: block_linear(x, values, index),
        "grad_x": lambda: ops.product(grad, values, tables, *sizes, True, *more)[0],
        "grad_values": lambda: ops.outer(grad, x, tables, *sizes, index.height, index.width, "ieee"),
    }


def others(x: Tensor, grad: Tensor, weight: Tensor, block: int, notes: dict[str, str]) -> Calls:
    """Dense products always; torch's sparse ones where they run, otherwise the reason goes to ``notes``."""
    calls: Calls = {
        "dense_forward": lambda: F.linear(x, weight),
        "dense_grad_x": lambda: grad @ weight,
        "dense_grad_values": lambda: grad.T @ x,
    }
    if x.device.type != "cuda":
        return calls
    tries: dict[str, Callable[[], Tensor]] = {"torch_bsr_forward": lambda: weight.to_sparse_bsr((block, block))}
    if x.dtype == torch.bfloat16 and x.shape[0] >= 32:
        pairs = weight.reshape(-1, 4).abs().topk(2, 1).indices
        two = torch.zeros_like(weight).reshape(-1, 4).scatter(1, pairs, 1).reshape(weight.shape) * weight
        tries["torch_2of4_forward"] = lambda: torch.sparse.to_sparse_semi_structured(two)
    for name, make in tries.items():
        try:
            sparse = make()
            F.linear(x, sparse)
        except Exception as error:  # any refusal of an experimental feature is a result, not a failure of the bench
            notes[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        calls[name] = lambda s=sparse: F.linear(x, s)  # type: ignore[misc]
    return calls


def error(found: Tensor, left: Tensor, right: Tensor) -> float:
    """The largest error of ``left @ right`` over the sum of its absolute terms, in float64."""
    exact, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    return float(((found.double() - exact).abs() / size.clamp(min=1e-30)).max())


def errors(calls: Calls, x: Tensor, grad: Tensor, weight: Tensor, index: BlockIndex) -> dict[str, float]:
    """Largest relative error of our products, on the first 64 tokens, inputs and outputs."""
    n = 64
    dense = index.dense(calls["grad_values"]())[:n, :n]
    kept = index.dense(torch.ones(index.blocks, index.height, index.width, device=x.device))[:n, :n] > 0
    exact, size = (grad.double().T[:n] @ x.double()[:, :n], grad.double().abs().T[:n] @ x.double().abs()[:, :n])
    off = ((dense.double() - exact).abs() / size.clamp(min=1e-30))[kept]
    return {
        "forward": error(calls["forward"]()[:n], x[:n], weight.T),
        "grad_x": error(calls["grad_x"]()[:n], grad[:n], weight),
        "grad_values": float(off.max()) if off.numel() else 0.0,
    }


def measure(
    dtype: torch.dtype, shape: tuple[int, int, int], block: int, density: float, timer: Timer, quick: bool
) -> dict[str, Any]:
    """One row of the table."""
    tokens, cols, rows = shape
    device = "cuda" if timer.cuda else "cpu"
    torch.manual_seed(0)
    grid = (-(-rows // block), -(-cols // block))
    index = BlockIndex.of_blocks(torch.rand(grid) < density, rows, cols, block, block).to(device)
    weight = torch.randn(rows, cols, device=device).mul_(cols**-0.5).to(dtype)
    values = index.values_of(weight)
    weight = index.dense(values).contiguous()
    x, grad = torch.randn(tokens, cols, device=device).to(dtype), torch.randn(tokens, rows, device=device).to(dtype)
    notes: dict[str, str] = {}
    calls = ours(x, grad, values, index)
    off = errors(calls, x, grad, weight, index)
    calls |= others(x, grad, weight, block, notes)
    times = timer.all(calls, 1 if quick else 11, 0 if quick else 3)
    kept, size = index.blocks * block * block, x.element_size()
    found = {}
    for name, seconds in times.items():
        middle = median(seconds)
        sparse = name in ("forward", "grad_x", "grad_values", "torch_bsr_forward")
        weights = kept if sparse else rows * cols
        found[name] = {
            "ms": 1e3 * middle,
            "low_ms": 1e3 * sorted(seconds)[len(seconds) // 4],
            "high_ms": 1e3 * sorted(seconds)[3 * len(seconds) // 4],
            "tflops": 2e-12 * tokens * weights / middle,
            "dense_tflops": 2e-12 * tokens * rows * cols / middle,
            "gb_per_s": 1e-9 * size * (weights + tokens * (rows + cols)) / middle,
        }
    row = {"dtype": str(dtype).split(".")[1], "tokens": tokens, "inputs": cols, "outputs": rows, "block": block}
    return {**row, "density": index.blocks / (grid[0] * grid[1]), "times": found, "max_error": off, "not_run": notes}


def ceilings(timer: Timer) -> dict[str, float]:
    """What this GPU reaches: a dense bf16 product, a copy (bytes read and written)."""
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    b = torch.empty(2**30, dtype=torch.int8, device="cuda")
    c = torch.empty_like(b)
    times = timer.all({"matmul": lambda: a @ a, "copy": lambda: c.copy_(b)}, 7, 3)
    return {
        "bf16_tflops": 2e-12 * 8192**3 / median(times["matmul"]),
        "copy_gb_per_s": 1e-9 * 2 * 2**30 / median(times["copy"]),
    }


def main(quick: bool, seconds: float) -> None:
    if not quick and not torch.cuda.is_available():
        print("skipped: no CUDA GPU; --quick runs tiny shapes under Triton's interpreter")
        return
    try:
        launch.kernels()
    except KernelError as missing:
        print(f"skipped: {missing}")
        return
    began, rows = time.perf_counter(), []
    torch.set_num_threads(1)
    timer = Timer("cpu" if quick else "cuda")
    more: dict[str, Any] = {"gpu": None, "ceilings": None}
    if not quick:
        torch.backends.cuda.matmul.allow_tf32 = False
        more = {"gpu": torch.cuda.get_device_name(), "ceilings": ceilings(timer)}
        print(more)
    todo = list(plan(quick))
    for dtype, shape, block, density in todo:
        if time.perf_counter() - began > seconds:
            print(f"out of time after {len(rows)} of {len(todo)} rows")
            break
        row = measure(dtype, shape, block, density, timer, quick)
        rows.append(row)
        shown = "  ".join(f"{name} {t['ms']:.4f}" for name, t in row["times"].items())
        print(f"{row['dtype']:8} {shape} {block:3}x{block:<3} {row['density']:.2f}  {shown}", flush=True)
        write("gpu_kernels_quick" if quick else "gpu_kernels", rows, planned=len(todo), **more)


if __name__ == "__main__":
    limit = float(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 540.0
    main("--quick" in sys.argv, limit)
