"""Global magnitude pruning with and without a minimum per layer, on an MLP with one layer of small weights.

python bench/floor_digits.py [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import table, write

from openwork.data import load_data
from openwork.lab import Budget

METHODS: dict[str, dict[str, Any]] = {
    "magnitude (layer)": {"method": "magnitude", "options": {"scope": "layer"}},
    "global_mp without minimum": {"method": "global_mp", "options": {"minimum": 0.0}},
    "global_mp": {"method": "global_mp"},
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    budget = Budget(epochs=2 if quick else 25, finetune_epochs=1 if quick else 15, batch_size=64, lr=0.02)
    rows: list[dict[str, Any]] = []
    for model, setting in (("models:unbalanced_mlp", "unbalanced"), ("mlp", "plain 64-128-128-10")):
        densities = (0.005,) if quick else (0.1, 0.05, 0.02, 0.01, 0.005)
        rows += table(setting, data, seeds, densities, METHODS, model=model, budget=budget)
    write(
        "floor_digits_quick" if quick else "floor_digits",
        rows,
        title="Digits, a minimum per layer",
        command="python bench/floor_digits.py",
        note="Unbalanced: 64-512-512-10 whose middle layer has weights of a tenth of the usual size. "
        f"25 epochs, then 15 of fine-tuning, {len(seeds)} seeds.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
