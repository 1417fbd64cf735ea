"""Digits MLP 64-128-128-10, global one-shot pruning of all three weights: SpODE against magnitude and SNIP, 5 seeds.

python bench/digits_oneshot.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import spread, trained, write

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude", "options": {"scope": "global"}},
    "snip": {"method": "snip", "options": {"batches": 3}},
    "spode": {"method": "spode", "options": {}},
    "spode N=1000": {"method": "spode", "options": {"steps": 1000}},
    "spode r=2": {"method": "spode", "options": {"radius": 2.0}},
}
BUDGETS = {
    "lr 0.05": Budget(epochs=40, finetune_epochs=20, batch_size=64, lr=0.1, finetune_lr=0.05),
    "lr 0.01 (the paper's)": Budget(epochs=40, finetune_epochs=20, batch_size=64, lr=0.1, finetune_lr=0.01),
}


def row(density: float, name: str, tuning: str, results: list[Any]) -> dict[str, Any]:
    """One row of the table."""
    found: dict[str, Any] = {
        "density": density,
        "method": name,
        "finetune": tuning,
        "kept": [r.counts.kept for r in results],
    }
    found["before"] = spread([r.metrics["pruned"]["accuracy"] for r in results])
    found["after"] = spread([r.metrics["finetuned"]["accuracy"] for r in results])
    if "path" in results[0].log[0]:
        found["regrown"] = spread([float(sum(p["regrown"] for p in r.log[0]["path"])) for r in results])
    print(
        f"{tuning:22} {density:5} {name:14} {100 * found['before']['mean']:6.2f} {100 * found['after']['mean']:6.2f}",
        flush=True,
    )
    return found


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(2 if quick else 5)
    densities = (0.05,) if quick else (0.10, 0.05, 0.02, 0.01)
    dense: list[float] = []
    rows = []
    budget = BUDGETS["lr 0.05"]
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            result = Runner(Job("mlp", "digits", density=1.0, budget=budget, seed=seed), data=data).run()[1]
            dense.append(result.metrics["finetuned"]["accuracy"])
            trained(Job("mlp", "digits", budget=budget, seed=seed), data, folder)
        for tuning, budget in list(BUDGETS.items())[: 1 if quick else None]:
            for density in densities:
                for name, method in METHODS.items():
                    if quick and name == "spode N=1000":
                        continue
                    starts = [str(Path(folder) / f"{seed}.safetensors") for seed in seeds]
                    jobs = [
                        Job("mlp", "digits", density=density, budget=budget, seed=seed, checkpoint=start, **method)
                        for seed, start in zip(seeds, starts, strict=True)
                    ]
                    rows.append(row(density, name, tuning, [Runner(job, data=data).run()[1] for job in jobs]))
    write("digits_oneshot_quick" if quick else "digits_oneshot", rows, dense=spread(dense), seeds=len(list(seeds)))


if __name__ == "__main__":
    main("--quick" in sys.argv)
