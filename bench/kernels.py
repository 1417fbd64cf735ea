"""Sparse products against both dense baselines: torch's default and oneDNN with weights in its own order.

    python bench/kernels.py [--quick] [--threads N] [--json FILE]

Interleaved rounds; one thread is timed by the processor's clock, several by the wall's. Masks are random. In the
"cold" rows the weights rotate through more memory than the shared cache holds, as the layers of a model do.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from common import of_isa, ratio, write
from torch import Tensor, nn

from openwork.formats import BlockSparse, Csr, Format, NMSparse
from openwork.kernels import isa, kinds_of
from openwork.kernels.native import dots, native
from openwork.runtime import PackedConv2d, PackedLinear
from openwork.runtime.prepacked import prepacked
from openwork.runtime.timing import interleaved

Packed = TypeVar("Packed", PackedLinear, PackedConv2d)
PATTERNS = {"32x32": (32, 32), "64x64": (64, 64), "16x16": (16, 16), "4x1": (4, 1), "unstructured": (1, 1)}
BLOCKS = ("32x32", "64x64", "16x16")
SHARED = "2:4 shared by 4"  # outputs
LINEAR = [(1024, 1024, 4096), (512, 768, 768), (128, 768, 3072), (16, 4096, 4096)]
CONVS = [(1, 256, 256, 14, 3), (1, 1024, 256, 14, 1), (8, 256, 256, 14, 3)]
POINTWISE = [(1, 256, 256, size, 1) for size in (7, 14, 28, 56)]  # as in Fast Sparse ConvNets and SparseByteNN
INT8 = ", int8 times int8"
COLD = 96 << 20  # bytes of weights that rotate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    sparsities = (0.9,) if args.quick else (0.5, 0.7, 0.8, 0.9, 0.95)
    patterns = ("32x32", "unstructured") if args.quick else tuple(PATTERNS)
    rounds = 2 if args.quick else 9
    with torch.no_grad():
        for tokens, inputs, outputs in [(64, 128, 128)] if args.quick else LINEAR:
            rows += linear(tokens, inputs, outputs, patterns, sparsities, rounds)
            rows += linear(tokens, inputs, outputs, (SHARED,), (0.5,), rounds)
            if not args.quick and computes_in_bfloat16():
                for dtype in (torch.bfloat16, torch.int8):
                    rows += linear(tokens, inputs, outputs, BLOCKS, sparsities, rounds, dtype)
            if dots():
                blocks = patterns[:1] if args.quick else BLOCKS
                rows += linear(tokens, inputs, outputs, blocks, sparsities, rounds, torch.int8, rounded=True)
        for shape in [(1, 32, 32, 8, 3)] if args.quick else CONVS:
            rows += conv(shape, patterns, sparsities, rounds)
            if not args.quick:
                for dtype in (torch.float32, torch.bfloat16)[: 1 + computes_in_bfloat16()]:
                    rows += conv(shape, BLOCKS, sparsities, rounds, last=True, dtype=dtype)
        for shape in [] if args.quick else POINTWISE:
            rows += conv(shape, ("4x1", "unstructured"), sparsities, rounds)
        size = 128 if args.quick else 4096
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            rows += cold(1, size, dtype, ("32x32",) if dtype != torch.float32 else patterns, sparsities, rounds)
        if dots():
            rows += cold(1, size, torch.int8, ("32x32",), sparsities, rounds, rounded=True)
        rows += cold(16, size, torch.float32, ("32x32",), sparsities, rounds)
    name = of_isa("kernels", args.threads, quick=args.quick)
    note = (
        f"{isa()} kernels. Ratios are medians over interleaved rounds; error is the largest, over the largest output."
    )
    write(name, rows, isa=isa(), note=note)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


def weights(
    outputs: int, inputs: int, pattern: str, sparsity: float, dtype: torch.dtype, by_row: bool = False
) -> Format:
    """A random matrix of one pattern, exactly as sparse as asked."""
    if pattern == SHARED:
        kept = round(4 * (1 - sparsity))
        places = torch.rand(outputs // 4, inputs // 4, 4).argsort(-1) < kept
        mask = places.view(outputs // 4, inputs).repeat_interleave(4, 0)
        return NMSparse.pack(torch.randn(outputs, inputs) / inputs**0.5 * mask, mask, n=kept, m=4, share=4, dtype=dtype)
    r, c = PATTERNS[pattern]
    units = (outputs // r) * (inputs // c)
    kept = torch.zeros(units, dtype=torch.bool)
    kept[torch.randperm(units)[: round((1 - sparsity) * units)]] = True
    mask = kept.view(outputs // r, inputs // c).repeat_interleave(r, 0).repeat_interleave(c, 1)
    matrix = torch.randn(outputs, inputs) / inputs**0.5 * mask
    if pattern == "unstructured":
        return Csr.pack(matrix, mask, dtype=dtype)
    return BlockSparse.pack(matrix, mask, height=r, width=c, dtype=dtype, by_row=by_row)


def compare(
    case: str, dense: nn.Module, x: Tensor, variants: dict[tuple[str, float], tuple[nn.Module, Tensor]], rounds: int
) -> list[dict[str, Any]]:
    """Rows of one shape; variants come with the dense weight of the same zeros, for the error."""
    fast = prepacked(dense)
    calls: dict[Any, Callable[[], Any]] = {"torch": lambda: dense(x)}
    if fast is not None:
        calls["onednn"] = lambda: fast(x)
    calls.update({key: (lambda m=m: m(x)) for key, (m, _) in variants.items()})
    times = interleaved(calls, rounds=rounds, least=0.02)
    rows = []
    best = "onednn" if fast is not None and median(times["onednn"]) < median(times["torch"]) else "torch"
    for (pattern, sparsity), (module, weight) in variants.items():
        exact = _dense(module, x.double(), weight.double())
        error = float((module(x) - exact).abs().max() / exact.abs().max())
        rows.append(row_of(case, pattern, sparsity, times, (pattern, sparsity), best, module.kind, error))
    return rows


def row_of(
    case: str,
    pattern: str,
    sparsity: float,
    times: dict[Any, list[float]],
    key: Any,
    best: str,
    kernel: str,
    error: float,
) -> dict[str, Any]:
    """One printed row: the candidate ``key`` against torch and against ``best``, the fastest dense."""
    over = ratio(times, best, key)
    ms = {n: 1e3 * median(t) for n, t in times.items()}
    row = {
        "case": case,
        "pattern": pattern,
        "sparsity": sparsity,
        "ms": ms[key],
        "torch_ms": ms["torch"],
        "onednn_ms": ms.get("onednn"),
        "over_fastest": over["ratio"],
        "low": over["low"],
        "high": over["high"],
        "over_torch": ratio(times, "torch", key)["ratio"],
        "kernel": kernel,
        "error": error,
    }
    ratios = f"{row['over_fastest']:6.2f}x {row['over_torch']:6.2f}x"
    print(f"{case:28} {pattern:14} {sparsity:.2f} {row['ms']:9.3f} ms {ratios} {error:.0e}", flush=True)
    return row


def _dense(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(module, PackedConv2d):
        return F.conv2d(x, weight, None, module.stride, module.padding)
    return F.linear(x, weight)


def computes_in_bfloat16() -> bool:
    """Whether bfloat16 is multiplied as it is here."""
    module = native()
    return module is not None and module.halves()


def linear(
    tokens: int,
    inputs: int,
    outputs: int,
    patterns: tuple[str, ...],
    sparsities: tuple[float, ...],
    rounds: int,
    dtype: torch.dtype = torch.float32,
    rounded: bool = False,
) -> list[dict[str, Any]]:
    """Rows of a linear layer; ``rounded``: tokens in float32 that are multiplied in int8."""
    variants = {}
    kind = torch.float32 if dtype == torch.float32 or rounded else torch.bfloat16  # of tokens and dense layer
    x = torch.randn(tokens, inputs).to(kind)
    for pattern in patterns:
        for sparsity in sparsities:
            fmt = weights(outputs, inputs, pattern, sparsity, dtype, rounded)
            layer = faster([PackedLinear(fmt, None, kernel) for kernel in kinds(fmt, rounded)], x)
            variants[(pattern, sparsity)] = (layer, fmt.unpack())
    stored = {torch.float32: "", torch.bfloat16: ", bfloat16", torch.int8: ", int8 in bfloat16"}[dtype]
    case = f"linear {tokens},{inputs},{outputs}{INT8 if rounded else stored}"
    dense = nn.Linear(inputs, outputs, bias=False).to(kind)
    return compare(case, dense, x, variants, rounds)


def kinds(fmt: Format, rounded: bool) -> tuple[str, ...]:
    """The kernels that run a format, with tokens as they are or ``rounded`` to int8."""
    return ("int8",) if rounded else kinds_of(fmt)


def faster(layers: list[Packed], x: Tensor) -> Packed:
    """Of a format's kernels the one that packing would choose, by a short measurement of its own."""
    if len(layers) == 1:
        return layers[0]
    times = interleaved({i: (lambda m=m: m(x)) for i, m in enumerate(layers)}, rounds=9, least=0.02)
    return layers[min(times, key=lambda i: median(times[i]))]


def packed_conv(fmt: Format, k: int, kind: str = "") -> PackedConv2d:
    """A packed ``k x k`` convolution whose outputs are as large as its inputs; by its likely fastest kernel."""
    p = k // 2
    kind = kind or kinds_of(fmt)[0]
    return PackedConv2d(fmt, None, kind, kernel_size=(k, k), stride=(1, 1), padding=(p, p), dilation=(1, 1))


def conv(
    shape: tuple[int, int, int, int, int],
    patterns: tuple[str, ...],
    sparsities: tuple[float, ...],
    rounds: int,
    last: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, Any]]:
    batch, inputs, outputs, size, k = shape
    x = torch.randn(batch, inputs, size, size).to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    variants = {}
    for pattern in patterns:
        for sparsity in sparsities:
            fmt = weights(outputs, inputs * k * k, pattern, sparsity, dtype)
            layer = faster([packed_conv(fmt, k, kernel) for kernel in kinds_of(fmt)], x)
            variants[(pattern, sparsity)] = (layer, layer.dense_weight())
    dense = nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=False).to(dtype)
    case = f"conv {k}x{k} {inputs}-{outputs} at {size}, batch {batch}"
    if last:
        case += ", channels last" + (", bfloat16" if dtype == torch.bfloat16 else "")
        dense = dense.to(memory_format=torch.channels_last)
    return compare(case, dense, x, variants, rounds)


def rotating(layers: Iterable[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Calls of copies of a layer in turn, so that each finds its weights out of the cache."""
    turns = itertools.cycle(list(layers))
    return lambda x: next(turns)(x)


def cold(
    tokens: int,
    size: int,
    dtype: torch.dtype,
    patterns: tuple[str, ...],
    sparsities: tuple[float, ...],
    rounds: int,
    rounded: bool = False,
) -> list[dict[str, Any]]:
    """One token or a few; a float32 layer is the baseline whatever the sparse weights are stored as."""
    rows = []
    name = str(dtype).removeprefix("torch.") + (" times int8" if rounded else "")
    room = COLD if size > 128 else 1 << 16
    x = torch.randn(tokens, size)
    copies = max(2, room // (4 * size * size))
    layers = [nn.Linear(size, size, bias=False) for _ in range(copies)]
    dense = {"torch": rotating(layers)}
    ordered = [m for layer in layers if (m := prepacked(layer)) is not None]
    if tokens > 1 and ordered:  # oneDNN has nothing of its own for one
        dense["onednn"] = rotating(ordered)
    for pattern in patterns:
        for sparsity in sparsities:
            fmt = weights(size, size, pattern, sparsity, dtype, rounded)
            found = kinds(fmt, rounded)[: 1 if tokens == 1 else None]
            first = faster([PackedLinear(fmt, None, kind) for kind in found], x)
            copies = max(2, min(64, room // max(1, fmt.nbytes)))
            packed = rotating(PackedLinear(fmt, None, first.kind) for _ in range(copies))
            calls = {n: (lambda m=m: m(x)) for n, m in {**dense, "packed": packed}.items()}
            times = interleaved(calls, rounds=rounds, least=0.02)
            exact = F.linear(x.double(), fmt.unpack().double())
            error = float((first(x) - exact).abs().max() / exact.abs().max())
            case = f"decode {size}, cold, {name}" if tokens == 1 else f"linear {tokens},{size},{size}, cold"
            fastest = min(dense, key=lambda n: median(times[n]))
            rows.append(row_of(case, pattern, sparsity, times, "packed", fastest, first.kind, error))
    return rows


if __name__ == "__main__":
    main()
