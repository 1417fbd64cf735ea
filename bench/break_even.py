"""From how many zeros on each pattern is at least as fast as the fastest dense product there is.

    python bench/break_even.py [--quick] [--threads N]

Every pattern is measured at several shares of zeros, in turn with torch's default and oneDNN's prepacked product;
between two shares the ratio is interpolated. Images stand in the order that the pattern's kernel likes: channels last
for blocks, first for the others; the dense products may choose.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from common import of_isa, write
from kernels import PATTERNS, packed_conv, weights
from torch import Tensor, nn

from openwork.kernels import isa, kinds_of
from openwork.runtime import PackedLinear
from openwork.runtime.prepacked import prepacked
from openwork.runtime.timing import interleaved

SPARSITIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
LINEAR = [(512, 768, 768), (512, 1024, 1024), (128, 768, 3072), (16, 1024, 4096), (1, 1024, 4096)]
CONVS = [(1, 256, 256, 14, 3), (1, 1024, 256, 14, 1)]
COLUMNS = {"shape": "case", "pattern": "pattern", "wins from": "from:percent", "x at 50 %": "at_half:.2f"}


def crossing(sparsities: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The smallest share of zeros from which the ratio stays at 1 or above; None when it never does."""
    if ratios[-1] < 1:
        return None
    found, points = sparsities[0], list(zip(sparsities, ratios, strict=True))
    for (s0, r0), (s1, r1) in pairwise(points):
        if r0 < 1 <= r1:
            found = s0 + (s1 - s0) * (1 - r0) / (r1 - r0)
    return found


def rows_of(
    case: str, dense: Sequence[Callable[[], Any]], packed: dict[tuple[str, float], Callable[[], Any]], rounds: int
) -> list[dict[str, Any]]:
    """One row a pattern, from times of all candidates in turn."""
    calls: dict[Any, Callable[[], Any]] = dict(enumerate(dense))
    times = interleaved({**calls, **packed}, rounds=rounds, least=4e-3)
    best = min(calls, key=lambda i: median(times[i]))
    rows = []
    for pattern in dict.fromkeys(p for p, _ in packed):
        shares = [s for p, s in packed if p == pattern]
        ratios = [median(a / b for a, b in zip(times[best], times[pattern, s], strict=True)) for s in shares]
        rows.append(
            {
                "case": case,
                "pattern": pattern,
                "from": crossing(shares, ratios),
                "at_half": ratios[shares.index(0.5)],
                "sparsities": shares,
                "ratios": ratios,
            }
        )
        print(f"{case:32} {pattern:13} {rows[-1]['from']} {rows[-1]['at_half']:.2f}", flush=True)
    return rows


def linear(tokens: int, inputs: int, outputs: int, patterns: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    x, layer = torch.randn(tokens, inputs), nn.Linear(inputs, outputs, bias=False)
    fast = prepacked(layer) or layer
    packed = {}
    for pattern in patterns:
        for sparsity in SPARSITIES:
            fmt = weights(outputs, inputs, pattern, sparsity, torch.float32)
            module = PackedLinear(fmt, None, kinds_of(fmt)[0])
            packed[pattern, sparsity] = lambda m=module: m(x)
    return rows_of(f"linear {tokens},{inputs},{outputs}", [lambda: layer(x), lambda: fast(x)], packed, rounds)


def conv(shape: tuple[int, int, int, int, int], patterns: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    batch, inputs, outputs, size, k = shape
    x = torch.randn(batch, inputs, size, size)
    last = x.contiguous(memory_format=torch.channels_last)
    layer = nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=False)
    fast, turned = prepacked(layer) or layer, prepacked(layer) or layer
    packed = {}
    for pattern in patterns:
        for sparsity in SPARSITIES:
            fmt = weights(outputs, inputs * k * k, pattern, sparsity, torch.float32)
            module = packed_conv(fmt, k)
            image = last if module.kind == "block" else x
            packed[pattern, sparsity] = lambda m=module, i=image: m(i)
    calls: list[Callable[[], Tensor]] = [lambda: layer(x), lambda: fast(x), lambda: layer(last), lambda: turned(last)]
    return rows_of(f"conv {k}x{k} {inputs}-{outputs} at {size}, batch {batch}", calls, packed, rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    patterns = ("32x32", "unstructured") if args.quick else tuple(PATTERNS)
    rounds = 2 if args.quick else 5
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for shape in [(64, 128, 128)] if args.quick else LINEAR:
            rows += linear(*shape, patterns, rounds)
        for image in [(1, 32, 32, 8, 3)] if args.quick else CONVS:
            rows += conv(image, patterns, rounds)
    name = of_isa("break_even", args.threads, quick=args.quick)
    text = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    about = {
        "title": "Break-even" + {"avx2": "", "amx": ", AVX-512"}.get(isa(), f", {isa()} kernels"),
        "command": "python bench/break_even.py",
        "columns": COLUMNS,
    }
    write(name, rows, isa=isa(), text=text, **about)


if __name__ == "__main__":
    main()
