"""Bytes on disk of a packed layer, per format, dtype and density, against the dense float32 file of the same layer.

    python bench/formats.py [--quick]

The files are written by ``write_packed`` and counted whole: header, index, checksums and a dense bias included. Masks
are random in the units of the pattern. Every file is read back and compared before it is counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write
from safetensors.torch import save_file
from torch import Tensor

from openwork.core.select import keep_top
from openwork.formats import Bitmap, BlockSparse, Csr, Format, NMSparse, Unstructured
from openwork.ship import read_packed, write_packed

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
Pack = Callable[[Tensor, Tensor, torch.dtype], Format]


def blocks(height: int, width: int) -> Pack:
    return lambda w, m, dtype: BlockSparse.pack(w, m, height=height, width=width, dtype=dtype)


PATTERNS: dict[str, tuple[tuple[int, int], Pack]] = {
    "unstructured, CSR": ((1, 1), lambda w, m, dtype: Csr.pack(w, m, dtype=dtype)),
    "unstructured, bitmap": ((1, 1), lambda w, m, dtype: Bitmap.pack(w, m, dtype=dtype)),
    "unstructured, smaller of both": ((1, 1), lambda w, m, dtype: Unstructured().pack(w, m, dtype=dtype)),
    "4x1": ((4, 1), blocks(4, 1)),
    "16x1": ((16, 1), blocks(16, 1)),
    "16x16": ((16, 16), blocks(16, 16)),
    "32x32": ((32, 32), blocks(32, 32)),
}
RUNS = {"2:4": (2, 4, 1), "1:4": (1, 4, 1), "2:4 for four outputs": (2, 4, 4), "1:8": (1, 8, 1)}


def block_mask(rows: int, cols: int, height: int, width: int, sparsity: float, rng: torch.Generator) -> Tensor:
    """Exactly the asked share of random blocks."""
    down, across = rows // height, cols // width
    kept = keep_top(torch.rand(down * across, generator=rng), round((1 - sparsity) * down * across))
    return kept.view(down, across).repeat_interleave(height, 0).repeat_interleave(width, 1)


def run_mask(rows: int, cols: int, n: int, m: int, share: int, rng: torch.Generator) -> Tensor:
    ranks = torch.rand(rows // share, cols // m, m, generator=rng).argsort(2).argsort(2)
    return (ranks < n).reshape(rows // share, cols).repeat_interleave(share, 0)


def main(quick: bool) -> None:
    rows, cols = (128, 256) if quick else (1024, 4096)
    rng = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(rows, cols, generator=rng), torch.randn(rows, generator=rng)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        save_file({"weight": weight, "bias": bias}, path)
        dense = path.stat().st_size

        def measure(pattern: str, mask: Tensor, pack: Pack, sparsity: float) -> None:
            for name, dtype in DTYPES.items():
                packed = pack(weight * mask, mask, dtype)
                write_packed(path, {"weight": packed, "bias": bias})
                again = read_packed(path)[0]["weight"]
                if not isinstance(again, Format) or not torch.equal(again.unpack(), packed.unpack()):
                    raise SystemExit(f"{pattern}, {name}: the file does not give back what was packed")
                error = float((again.unpack() - weight * mask).abs().max() / weight.abs().max())
                size = path.stat().st_size
                found.append(
                    {"pattern": pattern, "format": packed.kind, "dtype": name, "sparsity": sparsity, "bytes": size,
                     "ratio": size / dense, "error": error}
                )  # fmt: skip
                print(f"{pattern:30} {name:9} {sparsity:5g} {size:9} {size / dense:7.4f} {error:8.1e}", flush=True)

        for sparsity in SPARSITIES:
            for pattern, ((height, width), pack) in PATTERNS.items():
                measure(pattern, block_mask(rows, cols, height, width, sparsity, rng), pack, sparsity)
        for pattern, (n, m, share) in RUNS.items():
            measure(
                pattern,
                run_mask(rows, cols, n, m, share, rng),
                lambda w, k, dtype, o={"n": n, "m": m, "share": share}: NMSparse.pack(w, k, **o, dtype=dtype),
                1 - n / m,
            )
    write("formats_quick" if quick else "formats", found, rows_of_matrix=rows, cols_of_matrix=cols, dense=dense)


if __name__ == "__main__":
    main("--quick" in sys.argv)
