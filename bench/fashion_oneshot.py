"""Fashion-MNIST, ResNet-8 (stem stride 2): all one-shot criteria before and after the same fine-tuning, 3 seeds.

    python bench/fashion_oneshot.py [--quick]

The dense control is fine-tuned for the same extra epoch.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import torch
from common import spread, trained, write

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner

METHODS: dict[str, dict[str, Any]] = {
    "random (ERK)": {"method": "random", "options": {"scope": "erk"}},
    "magnitude (layer)": {"method": "magnitude", "options": {"scope": "layer"}},
    "magnitude (global)": {"method": "magnitude", "options": {"scope": "global"}},
    "global_mp (floor)": {"method": "global_mp"},
    "snip": {"method": "snip", "options": {"batches": 10}},
    "grasp": {"method": "grasp"},
    "synflow": {"method": "synflow"},
    "spode": {"method": "spode"},
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("fashion-mnist"), range(1 if quick else 3)
    budget = Budget(epochs=3, finetune_epochs=1, batch_size=128, lr=0.1, finetune_lr=0.05)
    common: dict[str, Any] = {
        "model": "resnet8",
        "data": "fashion-mnist",
        "budget": budget,
        "model_options": {"stem_stride": 2},
    }
    runs: dict[tuple[float, str], list[Any]] = {}
    dense, control = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            start = trained(Job(seed=seed, **common), data, folder)
            result = Runner(Job(density=1.0, seed=seed, checkpoint=start, **common), data=data).run()[1]
            dense.append(result.metrics["dense"]["accuracy"])
            control.append(result.metrics["finetuned"]["accuracy"])
            print(f"seed {seed}: dense {dense[-1]:.4f}, control {control[-1]:.4f}", flush=True)
            for density in (0.05,) if quick else (0.10, 0.05, 0.02):
                for name, method in METHODS.items():
                    began = time.monotonic()
                    job = Job(density=density, seed=seed, checkpoint=start, **common, **method)
                    runs.setdefault((density, name), []).append(Runner(job, data=data).run()[1])
                    m = runs[density, name][-1].metrics
                    line = " ".join(f"{m[k]['accuracy']:.4f}" for k in ("pruned", "recalibrated", "finetuned"))
                    print(f"  {density} {name:20} {line}  {time.monotonic() - began:.0f} s", flush=True)
            rows = [_row(density, name, found) for (density, name), found in runs.items()]
            write(
                "fashion_oneshot_quick" if quick else "fashion_oneshot",
                rows,
                dense=spread(dense),
                control=spread(control),
            )


def _row(density: float, name: str, runs: list[Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "density": density,
        "method": name,
        "kept": [r.counts.kept for r in runs],
        "seeds": len(runs),
    }
    for stage in ("pruned", "recalibrated", "finetuned"):
        row[stage] = spread([r.metrics[stage]["accuracy"] for r in runs])
    row["smallest_layer"] = min(t["kept"] for r in runs for t in r.tensors if t["units"])
    return row


if __name__ == "__main__":
    main("--quick" in sys.argv)
