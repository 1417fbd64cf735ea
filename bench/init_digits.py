"""Pruning at initialisation on a deep MLP without normalisation (64-100x7-10, Kaiming), then 40 epochs.

python bench/init_digits.py [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import table, write

from openwork.data import load_data
from openwork.lab import Budget

METHODS: dict[str, dict[str, Any]] = {
    "random (equal shares)": {"method": "random", "options": {"scope": "layer"}},
    "magnitude": {"method": "magnitude", "options": {"scope": "global"}},
    "snip": {"method": "snip"},
    "grasp": {"method": "grasp"},
    "synflow, 1 round": {"method": "synflow", "options": {"rounds": 1}},
    "synflow": {"method": "synflow"},
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    budget = Budget(epochs=4 if quick else 40, finetune_epochs=0, batch_size=64, lr=0.05)
    rows: list[dict[str, Any]] = []
    for model, shape in (("models:deep_mlp", "deep"), ("mlp", "shallow")):
        densities = (0.02,) if quick else (0.1, 0.05, 0.02, 0.01, 0.005)
        rows += table(shape, data, seeds, densities, METHODS, model=model, budget=budget, at="init")
    write(
        "init_digits_quick" if quick else "init_digits",
        rows,
        title="Digits, pruned at initialisation",
        command="python bench/init_digits.py",
        note=f"Deep: eight linear layers of 100 units, no normalisation, Kaiming. Shallow: 64-128-128-10. "
        f"40 epochs at learning rate 0.05, {len(seeds)} seeds.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
