"""Blocks of weights beside LIBXSMM's batch-reduce products, the fastest open kernels there were for them.

    apt-get install libxsmm-dev
    python bench/libxsmm.py [--quick]

The comparator is `libxsmm_side.cpp`, compiled here: the same blocks, tokens copied into padded rows, and the tile of
tokens that was fastest of several. One process, calls in turn, one thread.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import of_isa, ratio, write
from kernels import PATTERNS, faster, weights
from torch import Tensor

from openwork.formats import BlockSparse
from openwork.kernels import isa, kinds_of
from openwork.runtime import PackedLinear
from openwork.runtime.timing import interleaved

SIDE = Path(__file__).with_name("libxsmm_side.cpp")
LIBRARIES = ("-lxsmm", "-lxsmmnoblas", "-lpthread", "-ldl")
SHAPES = [(1024, 1024, 4096), (512, 768, 768), (128, 768, 3072), (16, 4096, 4096)]
TILES = (16, 32, 48, 64, 128, 256)
COLUMNS = {
    "case": "case", "pattern": "pattern", "zeros": "sparsity:percent", "ms": "ms:.3g", "LIBXSMM ms": "other_ms:.3g",
    "its tile": "tile", "x over LIBXSMM": "ratio:.2f", "lowest": "low:.2f", "highest": "high:.2f", "error": "error:.0e",
}  # fmt: skip


class Side:
    """One layer in LIBXSMM's hands."""

    def __init__(self, library: ctypes.CDLL, fmt: BlockSparse, tile: int) -> None:
        self.kernels, self.fmt, self.tile = library, fmt, tile
        self.values = fmt.values.transpose(1, 2).contiguous()  # [block][input][output]
        columns = (fmt.columns.long() * fmt.width).contiguous()
        starts = fmt.row_starts.long().contiguous()
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (self.values, columns, starts)]
        sizes = [ctypes.c_int64(n) for n in (fmt.cols, fmt.rows, fmt.height, fmt.width, tile)]
        self.layer = ctypes.c_void_p(library.make(*pointers, *sizes))

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.empty(len(x), self.fmt.rows)
        self.kernels.run(
            self.layer, ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(len(x))
        )
        return y

    def __del__(self) -> None:
        self.kernels.drop(self.layer)


def compiled(folder: Path) -> ctypes.CDLL:
    """The comparator, or an exit that says what is missing."""
    out = folder / "side.so"
    line = ["g++", "-O3", "-march=native", "-shared", "-fPIC", str(SIDE), "-o", str(out), *LIBRARIES]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"libxsmm_side.cpp does not compile; apt-get install libxsmm-dev\n{done.stderr}")
    library = ctypes.CDLL(str(out))
    library.make.restype, library.target.restype = ctypes.c_void_p, ctypes.c_char_p
    return library


def compare(
    library: ctypes.CDLL, shape: tuple[int, int, int], pattern: str, sparsity: float, rounds: int
) -> dict[str, Any]:
    """One printed row."""
    tokens, inputs, outputs = shape
    fmt = weights(outputs, inputs, pattern, sparsity, torch.float32)
    assert isinstance(fmt, BlockSparse)
    x = torch.randn(tokens, inputs)
    ours = faster([PackedLinear(fmt, None, kind) for kind in kinds_of(fmt)], x)
    sides = [Side(library, fmt, tile) for tile in TILES if tokens % tile == 0]
    trial = interleaved({str(s.tile): (lambda s=s: s(x)) for s in sides if s.layer}, rounds=3, least=0.01)
    tile = int(min(trial, key=lambda k: median(trial[k])))
    theirs = next(s for s in sides if s.tile == tile)
    times = interleaved({"ours": lambda: ours(x), "theirs": lambda: theirs(x)}, rounds=rounds, least=0.02)
    over, exact = ratio(times, "theirs", "ours"), theirs(x)
    row = {
        "case": f"linear {tokens},{inputs},{outputs}",
        "pattern": pattern,
        "sparsity": sparsity,
        "ms": 1e3 * median(times["ours"]),
        "other_ms": 1e3 * median(times["theirs"]),
        "tile": tile,
        **over,
        "error": float((ours(x) - exact).abs().max() / exact.abs().max()),
    }
    print(
        f"{row['case']:22} {pattern:6} {sparsity:.2f} {row['ms']:8.3f} {row['other_ms']:8.3f} ({tile:3}) "
        f"{row['ratio']:.2f}x {row['error']:.0e}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes, sparsities = ([(16, 64, 128)], (0.5,)) if quick else (SHAPES, (0.5, 0.8, 0.9, 0.95))
    patterns = ("32x32",) if quick else tuple(p for p in PATTERNS if min(PATTERNS[p]) >= 16)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        library = compiled(Path(folder))
        target = library.target().decode()
        rows = [
            compare(library, shape, p, s, 2 if quick else 9) for shape in shapes for p in patterns for s in sparsities
        ]
    text = (
        f"Blocks of weights, float32, one thread, calls in turn. LIBXSMM (as `{target}`) multiplies the same blocks "
        "in the tile of tokens that was fastest for it; ratios above 1 mean that openwork is faster."
    )
    title = "Beside LIBXSMM" + ("" if isa() == "amx" else f", {isa()} kernels")
    about = {"title": title, "command": "python bench/libxsmm.py", "columns": COLUMNS}
    write(of_isa("libxsmm", 1, quick=quick), rows, isa=isa(), text=text, **about)


if __name__ == "__main__":
    main()
