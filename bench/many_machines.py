"""What pruning a sharded model costs each GPU: bytes sent, memory held, for models and machines that are not here.

Bytes and calls come from the code itself, run on small tensors; only the number of ranks and of weights is put in.
Times are those of a simple model of a network, stated below, and nothing that was measured.

python bench/many_machines.py [--quick]
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from common import write

from openwork.core.select_sharded import Traffic, keep_top_sharded

LATENCY, BANDWIDTH = 10e-6, 25e9
"""Seconds of one hop of a collective operation and bytes per second and GPU: an ordinary 200 Gbit/s network."""
SETTINGS = (("ImageNet ResNet-50", 25_600_000, 54, 16), ("7 B", 7e9, 225, 64), ("100 B", 100e9, 560, 1024))


def choice(tensors: int, ranks: int, dtype: torch.dtype) -> Traffic:
    """One exact choice among the scores of so many tensors: what a rank contributes to the sums.

    The digits do not depend on the number of scores; the table of ties has a row per rank and a column per tensor.
    """
    traffic = Traffic()
    scores = torch.randn(64 * tensors, generator=torch.Generator().manual_seed(0)).to(dtype)
    keep_top_sharded(list(scores.split(64)), 6 * tensors, traffic=traffic)
    traffic.bytes += 8 * tensors * (ranks - 1)
    return traffic


def update(method: str, tensors: int, ranks: int) -> Traffic:
    """All that one update of the masks sends."""
    counts = Traffic(8 * tensors, 1)  # one number per tensor
    parts = [counts] * 5  # finite scores, kept, changed, weights kept and all
    if method == "global magnitude":
        parts += [choice(tensors, ranks, torch.float32), counts]
    each = choice(1, ranks, torch.float64 if method == "rigl" else torch.float32)
    parts += [each] * (tensors * (2 if method == "rigl" else 1))
    if method == "rigl":
        parts += [counts] * 3 + [Traffic(8, 1)] * tensors
    return Traffic(sum(p.bytes for p in parts), sum(p.calls for p in parts))


def memory(method: str, weights: float, ranks: int, tensors: int) -> dict[str, float]:
    """Bytes per GPU: what training holds without openwork, what masks add for good, and for the time of an update."""
    piece = weights / ranks
    largest = 4 * piece / tensors  # of one tensor, when some are four times the mean
    return {
        "training": 16 * piece,  # float32 weights, gradients and two moments
        "masks": (3 if method == "rigl" else 2) * piece,  # units, pruned entries, and who was ever active
        "update": (4 * piece + 26 * largest) if method == "rigl" else (4 * piece + 10 * largest),
    }


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, weights, tensors, ranks in SETTINGS[:1] if quick else SETTINGS:
        for method in ("magnitude", "global magnitude", "rigl"):
            sent, held = update(method, tensors, ranks), memory(method, weights, ranks, tensors)
            hops = 2 * math.ceil(math.log2(ranks))
            seconds = sent.calls * hops * LATENCY + 2 * sent.bytes / BANDWIDTH
            rows.append(
                {
                    "model": name,
                    "weights": weights,
                    "ranks": ranks,
                    "method": method,
                    "megabytes": sent.bytes / 1e6,
                    "calls": sent.calls,
                    "gathering": 4 * weights / 1e6,
                    "seconds": seconds,
                    **{f"{k}_gb": v / 1e9 for k, v in held.items()},
                }
            )
            print(rows[-1], flush=True)
    write(
        "many_machines_quick" if quick else "many_machines",
        rows,
        title="Masks of sharded models: what an update sends and holds",
        command="python bench/many_machines.py",
        note="Counted, not measured: bytes and calls of the code for one update of the masks on one rank, and times of "
        f"a network with {LATENCY * 1e6:.0f} microseconds a hop and {BANDWIDTH / 1e9:.0f} GB/s a GPU. Gathering is "
        "what every rank would receive if the scores were collected instead. Memory is per GPU with float32 Adam.",
        columns={
            "model": "model",
            "GPUs": "ranks:,",
            "method": "method",
            "MB sent": "megabytes:.2f",
            "sums": "calls:,",
            "MB if gathered": "gathering:,.0f",
            "modelled seconds": "seconds:.3f",
            "GB of training": "training_gb:.2f",
            "GB of masks": "masks_gb:.3f",
            "GB during an update": "update_gb:.2f",
        },
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
