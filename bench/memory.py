"""Peak memory of every method of the index: one short job each in a process of its own, ResNet-20, 32 x 32 pixels.

    python bench/memory.py [--quick]

The figure is the highest resident memory of the whole job (training, pruning, fine-tuning; all batches of 128) less
that of the process before it began, in mebibytes and over that of dense training of the same length. The model has
1.1 MiB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import write

from openwork import methods

FEWER = {"spode": 10, "spode_iterative": 10, "icbs": 10}  # more steps take longer, not more


def job(name: str) -> None:
    """Run one job and print its peak."""
    import torch

    import openwork as ow
    from openwork.core.targets import Select
    from openwork.data.dataset import DataSet
    from openwork.lab import Budget, Job, Runner
    from openwork.structure import Block, Element

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,))
    data = DataSet("noise", x[:128], y[:128], x[128:], y[128:], 10)
    blocks = name == "sequential_attention_pp"
    own: dict[str, Any] = {"method": name, "density": 0.2, "structure": Block(8, 8) if blocks else Element()}
    if name == "dense":
        own = {"method": "magnitude", "density": 1.0}
    elif blocks:
        own["where"] = Select(min_units=4)
    if name in FEWER:
        own["options"] = {"steps": FEWER[name]}
    if name != "dense" and methods.find(name).structures.startswith("coupled"):
        own["structure"] = ow.channels(example=x[:2])
    budget = Budget(epochs=30, finetune_epochs=10, batch_size=128)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    Runner(Job(model="resnet20", data="noise", budget=budget, **own), data=data).run()
    print(json.dumps({"mib": (_resident("VmHWM") - before) / 1024}))


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}")


def main(quick: bool) -> None:
    rows: list[dict[str, Any]] = []
    names = ["dense", "magnitude"] if quick else ["dense", *methods.names()]
    for name in names:
        run = subprocess.run(
            [sys.executable, __file__, "--job", name], capture_output=True, text=True, check=False, timeout=3600
        )
        if run.returncode:
            print(name, "failed:", run.stderr.strip().splitlines()[-1])
            continue
        mib = json.loads(run.stdout.splitlines()[-1])["mib"]
        rows.append({"method": name, "mib": mib, "over_dense": mib / rows[0]["mib"] if rows else 1.0})
        print(f"{name:28} {mib:8.1f} MiB {rows[-1]['over_dense']:6.2f}x", flush=True)
    write("memory_quick" if quick else "memory", rows, note=(__doc__ or "").split("\n\n")[2].replace("\n", " "))


if __name__ == "__main__":
    if "--job" in sys.argv:
        job(sys.argv[-1])
    else:
        main("--quick" in sys.argv)
