"""Powerpropagation, WoodFisher, ProbMask and STR on the digits MLP, against magnitude under equal budgets.

python bench/baselines_digits.py [--quick]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from common import row, table, write

from openwork.data import load_data
from openwork.errors import DivergedError
from openwork.lab import Budget, Job, Runner

TRAINING = Budget(epochs=60, finetune_epochs=20, batch_size=60, lr=0.1, finetune_lr=0.05)
ONE_SHOT = replace(TRAINING, finetune_epochs=0.01)


def attempt(job: Job, data: Any) -> Any:
    """The result, or None when the training diverged."""
    try:
        return Runner(job, data=data).run()[1]
    except DivergedError as problem:
        print(problem)
        return None


def powers(data: Any, seeds: range, budget: Budget, densities: tuple[float, ...]) -> list[dict[str, Any]]:
    """No retraining: the mask is written after the last step."""
    rows = []
    for alpha in (1.0, 2.0, 3.0, 4.0):  # 4 diverges for some seeds; see "diverged"
        for density in densities:
            jobs = [
                Job("mlp", "digits", "powerpropagation", density, options={"alpha": alpha}, budget=budget, seed=s)
                for s in seeds
            ]
            found = [r for r in (attempt(j, data) for j in jobs) if r is not None]
            if not found:
                print(f"powerpropagation alpha {alpha:g} diverged with every seed")
                continue
            rows.append(row("no retraining", density, f"powerpropagation alpha {alpha:g}", found))
            rows[-1]["diverged"] = len(jobs) - len(found)
    return rows


def surgery(data: Any, seeds: range, budget: Budget, densities: tuple[float, ...]) -> list[dict[str, Any]]:
    """One-shot on the same trained networks, before any fine-tuning."""
    fisher = {"samples": 600, "block": 500, "damp": 1e-4}
    variants: dict[str, dict[str, Any]] = {
        "woodfisher, mask only": {"update": False},
        "woodfisher": {},
        "woodfisher, joint": {"joint": True},
        "woodfisher, 4 rounds": {"rounds": 4},
        "woodfisher, blocks of 100": {"block": 100},
        "woodfisher, blocks of 10": {"block": 10},
    }
    plans: dict[str, dict[str, Any]] = {
        "magnitude": {"method": "magnitude", "options": {"scope": "global"}},
        **{n: {"method": "woodfisher", "options": {**fisher, **v}} for n, v in variants.items()},
        "spode": {"method": "spode"},
    }
    return table("one shot, no fine-tuning", data, seeds, densities, plans, "pruned", model="mlp", budget=budget)


def training(data: Any, seeds: range, budget: Budget, densities: tuple[float, ...]) -> list[dict[str, Any]]:
    """Equal steps: dense training plus fine-tuning, or one sparse training of the same length."""
    plans: dict[str, dict[str, Any]] = {
        "magnitude, fine-tuned": {"method": "magnitude", "options": {"scope": "global"}},
        "gradual_magnitude": {"method": "gradual_magnitude", "options": {"scope": "global"}},
        "probmask": {"method": "probmask", "options": {"learning_rate_of_s": 0.03}},
        "str": {"method": "str"},
        "powerpropagation alpha 2": {"method": "powerpropagation", "options": {"alpha": 2.0, "prune_at": 0.75}},
        "woodfisher, fine-tuned": {
            "method": "woodfisher",
            "options": {"samples": 600, "block": 500, "damp": 1e-4},
        },
        "spode, fine-tuned": {"method": "spode"},
    }
    return table("equal steps", data, seeds, densities, plans, model="mlp", budget=budget)


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 4)
    training_, one_shot = TRAINING, ONE_SHOT
    if quick:
        training_, one_shot = (
            replace(b, epochs=4, finetune_epochs=min(b.finetune_epochs, 2)) for b in (TRAINING, ONE_SHOT)
        )
    rows = powers(data, seeds, training_, (0.1,) if quick else (0.9, 0.2, 0.1, 0.05, 0.02))
    rows += surgery(data, seeds, one_shot, (0.2,) if quick else (0.3, 0.2, 0.1))
    rows += training(data, seeds, training_, (0.1,) if quick else (0.1, 0.05, 0.02, 0.01))
    write(
        "baselines_digits_quick" if quick else "baselines_digits",
        rows,
        title="Digits, baselines of the flagship papers",
        command="python bench/baselines_digits.py",
        note=f"MLP 64-128-128-10, batch 60, {len(seeds)} seeds. 80 epochs for powerpropagation and for every row of "
        "equal steps (60 + 20 where a dense network is pruned); 60 for the one-shot rows.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
