"""Unstructured layers beside DeepSparse 1.8.0, the fastest engine there was for them, in a process of its own.

    python bench/engines.py --other FOLDER/bin/python [--quick]

FOLDER is an environment with DeepSparse (see `deepsparse_side.py`). Single calls with one thread in both processes, in
turn, round after round; both must compute the same. ONNX models with one layer stand for DeepSparse's side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import of_isa, write
from kernels import packed_conv, weights
from torch import Tensor, nn

from openwork.kernels import isa, kinds_of
from openwork.runtime import PackedLinear

SIDE = Path(__file__).with_name("deepsparse_side.py")
SECONDS = 0.3
LINEAR = [(128, 768, 3072), (512, 768, 768), (1024, 1024, 4096), (16, 4096, 4096), (1, 4096, 4096)]
CONVS = [(1, 256, 256, 14, 3), (8, 256, 256, 14, 3), (1, 1024, 256, 14, 1), (8, 1024, 256, 14, 1)]
COLUMNS = {
    "case": "case", "zeros": "sparsity:percent", "ms": "ms:.3g", "DeepSparse ms": "other_ms:.3g",
    "x over DeepSparse": "ratio:.2f", "lowest": "low:.2f", "highest": "high:.2f", "error": "error:.0e",
}  # fmt: skip


def layer_of(shape: tuple[int, ...], sparsity: float) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Name, packed layer, input and the dense weight of one case."""
    if len(shape) == 3:
        tokens, inputs, outputs = shape
        fmt = weights(outputs, inputs, "unstructured", sparsity, torch.float32)
        return (
            f"linear {tokens},{inputs},{outputs}",
            PackedLinear(fmt, None, kinds_of(fmt)[0]),
            torch.randn(tokens, inputs),
            fmt.unpack(),
        )
    batch, inputs, outputs, size, k = shape
    fmt = weights(outputs, inputs * k * k, "unstructured", sparsity, torch.float32)
    layer = packed_conv(fmt, k)
    name = f"conv {k}x{k} {inputs}-{outputs} at {size}, batch {batch}"
    return name, layer, torch.randn(batch, inputs, size, size), layer.dense_weight()


def timed(layer: nn.Module, x: Tensor) -> float:
    """Median milliseconds of single calls."""
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        layer(x)
        times.append(1e3 * (time.perf_counter() - began))
    return median(times)


def asked(other: subprocess.Popen[str], place: Path) -> float:
    """The other process's median for the case stored at ``place``."""
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write(f"{place}\n")
    other.stdin.flush()
    for line in other.stdout:
        if line.startswith("ANSWER "):
            return median(json.loads(line.removeprefix("ANSWER ")))
    raise SystemExit("the other process stopped; its messages stand above")


def compare(
    other: subprocess.Popen[str], work: Path, shape: tuple[int, ...], sparsity: float, rounds: int
) -> dict[str, Any]:
    """One printed row."""
    case, layer, x, weight = layer_of(shape, sparsity)
    place = work / f"{len(list(work.iterdir()))}.npz"
    np.savez(place, x=x.numpy(), w=weight.numpy())
    asked(other, place)
    found, wanted = layer(x), torch.from_numpy(np.load(f"{place}.y.npy"))
    pairs = [(timed(layer, x), asked(other, place)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    row = {
        "case": case,
        "sparsity": sparsity,
        "ms": median(a for a, _ in pairs),
        "other_ms": median(b for _, b in pairs),
        "ratio": median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "error": float((found - wanted).abs().max() / wanted.abs().max()),
    }
    print(
        f"{case:36} {sparsity} {row['ms']:8.3f} {row['other_ms']:8.3f} {row['ratio']:.2f}x {row['error']:.0e}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--other", required=True, help="the Python that has deepsparse")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [(8, 64, 64), (1, 8, 8, 6, 3)] if args.quick else [*LINEAR, *CONVS]
    sparsities, rounds = ((0.9,), 1) if args.quick else ((0.5, 0.8, 0.9, 0.95), 3)
    with tempfile.TemporaryDirectory() as work, torch.no_grad():
        pipe = subprocess.PIPE
        with subprocess.Popen([args.other, str(SIDE)], stdin=pipe, stdout=pipe, text=True) as other:
            rows = [compare(other, Path(work), shape, s, rounds) for shape in cases for s in sparsities]
            other.terminate()
    text = (
        "Single weights, one thread, single calls in two processes in turn. DeepSparse runs ONNX models of one layer; "
        "ratios above 1 mean that openwork is faster."
    )
    about = {
        "title": "Beside DeepSparse 1.8.0" + ("" if isa() == "amx" else f", {isa()} kernels"),
        "command": "python bench/engines.py --other PYTHON",
        "columns": COLUMNS,
    }
    write(of_isa("engines", 1, quick=args.quick), rows, isa=isa(), text=text, **about)


if __name__ == "__main__":
    main()
