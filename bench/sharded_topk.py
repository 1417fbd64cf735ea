"""The exact choice over scores that lie on several processes: bytes sent, time, and whether it is one process's choice.

python bench/sharded_topk.py [--quick]
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import write
from torch import Tensor, distributed, multiprocessing

from openwork.core.select import keep_top
from openwork.core.select_sharded import Traffic, keep_top_sharded


def scores(rank: int, count: int) -> Tensor:
    """What one rank holds; a tenth of it ties with others."""
    rng = torch.Generator().manual_seed(rank)
    found = torch.randn(count, generator=rng)
    found[: count // 10] = found[: count // 10].mul(100).round().div(100)
    return found


def worker(rank: int, world: int, port: int, count: int, keep: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    mine, traffic = scores(rank, count), Traffic()
    distributed.barrier()
    began = time.perf_counter()
    (mask,) = keep_top_sharded([mine], keep, traffic=traffic)
    seconds = time.perf_counter() - began
    torch.save({"mask": mask, "bytes": traffic.bytes, "calls": traffic.calls, "seconds": seconds}, f"{folder}/{rank}")
    distributed.destroy_process_group()


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for world, total in ((2, 10**5),) if quick else ((2, 10**6), (4, 10**7), (4, 10**8)):
        count, keep = total // world, total // 10
        with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            multiprocessing.spawn(worker, args=(world, port, count, keep, folder), nprocs=world)
            found = [torch.load(Path(folder) / str(r)) for r in range(world)]
        one = torch.cat([scores(r, count) for r in range(world)])
        began = time.perf_counter()
        want = keep_top(one, keep)
        alone = time.perf_counter() - began
        equal = torch.equal(torch.cat([f["mask"] for f in found]), want)
        rows.append(
            {
                "scores": total,
                "ranks": world,
                "equal": str(equal),
                "bytes": max(f["bytes"] for f in found),
                "calls": found[0]["calls"],
                "seconds": max(f["seconds"] for f in found),
                "alone": alone,
            }
        )
        print(rows[-1], flush=True)
    write(
        "sharded_topk_quick" if quick else "sharded_topk",
        rows,
        title="The exact choice over scores on several processes",
        command="python bench/sharded_topk.py",
        note="A tenth is kept, a tenth of the scores are rounded so that they tie. Bytes are what one rank contributes "
        "to all sums; times are those of a busy machine with fewer cores than ranks.",
        columns={
            "scores": "scores:,",
            "ranks": "ranks",
            "equal to one process": "equal",
            "bytes sent": "bytes:,",
            "sums": "calls",
            "seconds": "seconds:.2f",
            "one process": "alone:.2f",
        },
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
