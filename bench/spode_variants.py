"""SpODE's settings on the digits MLP: steps, radius and its search, batches, where the density comes from, polarisers.

    python bench/spode_variants.py [--quick]

Every variant prunes the same trained networks; then 20 epochs at the paper's rate of 0.01.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from common import accuracies, trained, write

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner

VARIANTS: dict[str, dict[str, Any]] = {
    "default (N=100, r=1.1)": {},
    "paper": {"preset": "paper"},
    "N=30": {"steps": 30},
    "N=300": {"steps": 300},
    "N=1000": {"steps": 1000},
    "r=1.02": {"radius": 1.02},
    "r=1.4": {"radius": 1.4},
    "r=2": {"radius": 2.0},
    "r=1.4, paper": {"radius": 1.4, "preset": "paper"},
    "r=2, paper": {"radius": 2.0, "preset": "paper"},
    "radius search": {"radius_path": "search"},
    "4 batches per step": {"batches": 4},
    "l1 measure": {"measure": "l1"},
    "local": {"scope": "local"},
    "clamp": {"clamp": True},
    "momentum 0.9": {"momentum": 0.9},
    "linear path": {"path": "lin"},
    "hess path": {"path": "hess"},
    "ohm": {"polariser": "ohm"},
    "qt": {"polariser": "qt"},
    "gau": {"polariser": "gau"},
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    budget = Budget(epochs=40, finetune_epochs=1 if quick else 20, batch_size=64, lr=0.1, finetune_lr=0.01)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            trained(Job("mlp", "digits", budget=budget, seed=seed), data, folder)
        for density in (0.05,) if quick else (0.05, 0.02, 0.01):
            for name, options in list(VARIANTS.items())[: 3 if quick else None]:
                jobs = [
                    Job(
                        "mlp",
                        "digits",
                        "spode",
                        density,
                        options=options,
                        budget=budget,
                        seed=seed,
                        checkpoint=f"{folder}/{seed}.safetensors",
                    )
                    for seed in seeds
                ]
                runs = [Runner(j, data=data).run()[1] for j in jobs]
                before, after = accuracies(runs, "pruned"), accuracies(runs)
                print(f"{density:5} {name:26} {100 * before['mean']:6.2f} {100 * after['mean']:6.2f}", flush=True)
                rows.append({"density": density, "method": name, "before": before, "after": after})
    write("spode_variants_quick" if quick else "spode_variants", rows, seeds=len(seeds))


if __name__ == "__main__":
    main("--quick" in sys.argv)
