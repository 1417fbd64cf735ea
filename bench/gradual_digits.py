"""Gradual pruning of the digits MLP at equal steps: the curve, the time between updates, and when it ends.

python bench/gradual_digits.py [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import table, write

from openwork.data import load_data
from openwork.lab import Budget


def plans(steps: int) -> dict[str, dict[str, Any]]:
    """The arms; all but the last two begin at 5 % of the steps and end at 60 %."""

    def arm(begin: float = 0.05, end: float = 0.6, **options: Any) -> dict[str, Any]:
        span = {"begin": round(begin * steps), "end": round(end * steps)}
        return {"method": "gradual_magnitude", "options": {**span, "every": max(1, steps // 60), **options}}

    return {
        "cubic, every 60th of the steps": arm(),
        "cubic, every 240th": arm(every=max(1, steps // 240)),
        "cubic, every 12th": arm(every=steps // 12),
        "linear": arm(power=1.0),
        "cubic, ends at 95 %": arm(end=0.95),
        "at once, at 5 %": arm(end=0.051, every=1),
    }


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 5)
    budget = Budget(epochs=3 if quick else 60, finetune_epochs=0, batch_size=64, lr=0.05)
    steps = round(budget.epochs * -(-len(data.x_train) // budget.batch_size))
    densities = (0.05,) if quick else (0.1, 0.05, 0.02)
    rows = table("64-128-128-10", data, seeds, densities, plans(steps), model="mlp", budget=budget)
    write(
        "gradual_digits_quick" if quick else "gradual_digits",
        rows,
        title="Digits, the curve of gradual pruning",
        command="python bench/gradual_digits.py",
        note=f"{steps:,} steps from scratch for all, learning rate falling to nothing, {len(seeds)} seeds. Shares are "
        "of all steps; curves begin at 5 % of them and end at 60 % unless said otherwise.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
