"""Is it the layer shares or the places? Masks at initialisation against random masks with the same shares, digits MLP.

python bench/shares_digits.py [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import table, write

from openwork.data import load_data
from openwork.lab import Budget

METHODS: dict[str, dict[str, Any]] = {
    "snip": {"method": "snip"},
    "random, shares of snip": {"method": "random", "options": {"scope": "snip"}},
    "grasp": {"method": "grasp"},
    "random, shares of grasp": {"method": "random", "options": {"scope": "grasp"}},
    "random, shares of magnitude": {"method": "random", "options": {"scope": "magnitude"}},
    "random, ERK": {"method": "random"},
    "random, equal shares": {"method": "random", "options": {"scope": "layer"}},
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    budget = Budget(epochs=2 if quick else 40, finetune_epochs=0, batch_size=64, lr=0.05)
    densities = (0.05,) if quick else (0.2, 0.1, 0.05)
    rows = table("64-128-128-10", data, seeds, densities, METHODS, model="mlp", budget=budget, at="init")
    write(
        "shares_digits_quick" if quick else "shares_digits",
        rows,
        title="Digits, places against shares at initialisation",
        command="python bench/shares_digits.py",
        note=f"40 epochs from scratch at learning rate 0.05 under fixed masks, {len(seeds)} seeds.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
