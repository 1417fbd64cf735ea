"""Sparse training from scratch on Fashion-MNIST, LeNet: SET, RigL, fixed random masks, gradual and one-shot magnitude.

python bench/growth_fashion.py [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import row, write

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner

METHODS: dict[str, dict[str, Any]] = {
    "random, ERK shares": {"method": "random", "at": "init"},
    "random, equal shares": {"method": "random", "options": {"scope": "layer"}, "at": "init"},
    "set": {"method": "set"},
    "rigl": {"method": "rigl"},
    "gradual_magnitude": {"method": "gradual_magnitude"},
    "magnitude (layer)": {"method": "magnitude", "options": {"scope": "layer"}},
    "global_mp": {"method": "global_mp"},
}
WIDTHS = {2: (2, 4, 16), 4: (4, 8, 32), 8: (8, 16, 64), 16: (16, 32, 128)}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("fashion-mnist"), range(1 if quick else 3)
    budget = Budget(0.1, 0.05, 128, lr=0.05) if quick else Budget(1.5, 0.5, 128, lr=0.05, finetune_lr=0.02)

    def run(setting: str, density: float, name: str, width: int = 8, **method: Any) -> dict[str, Any]:
        first, second, hidden = WIDTHS[width]
        size = {"channels": (first, second), "hidden": hidden}
        jobs = [
            Job("lenet", "fashion-mnist", density=density, budget=budget, seed=s, model_options=size, **method)
            for s in seeds
        ]
        return row(setting, density, name, [Runner(j, data=data).run()[1] for j in jobs])

    def save(rows: list[dict[str, Any]]) -> None:
        write(
            "growth_fashion_quick" if quick else "growth_fashion",
            rows,
            title="Fashion-MNIST, LeNet, sparse training from scratch",
            command="python bench/growth_fashion.py",
            note=f"Two epochs for every row, {len(seeds)} seeds. Widths are the channels of the first convolution.",
        )

    rows = [run("dense", 1.0, "dense", method="magnitude")]
    for density in (0.02,) if quick else (0.05, 0.02):
        for name, method in METHODS.items():
            rows.append(run("width 8", density, name, **method))
            save(rows)
    for width in () if quick else (2, 4, 16):
        rows.append(run(f"width {width}", 1.0, "dense", width, method="magnitude"))
        rows.append(run(f"width {width}", 0.2, "random, ERK shares", width, method="random", at="init"))
    if not quick:
        rows.append(run("width 8", 0.2, "random, ERK shares", method="random", at="init"))
    save(rows)


if __name__ == "__main__":
    main("--quick" in sys.argv)
