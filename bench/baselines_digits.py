"""Powerpropagation, WoodFisher, ProbMask and STR on the digits MLP, against magnitude under equal budgets.

python bench/baselines_digits.py [--quick]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from common import accuracies, write

from openwork.data import load_data
from openwork.errors import DivergedError
from openwork.lab import Budget, Job, Runner

TRAINING = Budget(epochs=60, finetune_epochs=20, batch_size=60, lr=0.1, finetune_lr=0.05)
ONE_SHOT = replace(TRAINING, finetune_epochs=0.01)


def row(setting: str, density: float, method: str, results: list[Any], stage: str = "finetuned") -> dict[str, Any]:
    """One printed row; ``stage`` is the moment of the accuracy."""
    found = accuracies(results, stage)
    print(f"{setting:34} {density:6g} {method:28} {100 * found['mean']:6.2f} {found['values']}", flush=True)
    smallest = min(t["kept"] for r in results for t in r.tensors if t["units"])
    return {"setting": setting, "density": density, "method": method, "accuracy": found, "smallest_layer": smallest}


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
    plans: dict[str, tuple[str, dict[str, Any]]] = {
        "magnitude": ("magnitude", {"scope": "global"}),
        "woodfisher, mask only": ("woodfisher", {**fisher, "update": False}),
        "woodfisher": ("woodfisher", fisher),
        "woodfisher, joint": ("woodfisher", {**fisher, "joint": True}),
        "woodfisher, 4 rounds": ("woodfisher", {**fisher, "rounds": 4}),
        "woodfisher, blocks of 100": ("woodfisher", {**fisher, "block": 100}),
        "woodfisher, blocks of 10": ("woodfisher", {**fisher, "block": 10}),
        "spode": ("spode", {}),
    }
    rows = []
    for density in densities:
        for name, (method, options) in plans.items():
            jobs = [Job("mlp", "digits", method, density, options=options, budget=budget, seed=s) for s in seeds]
            found = [Runner(j, data=data).run()[1] for j in jobs]
            rows.append(row("one shot, no fine-tuning", density, name, found, "pruned"))
    return rows


def training(data: Any, seeds: range, budget: Budget, densities: tuple[float, ...]) -> list[dict[str, Any]]:
    """Equal steps: dense training plus fine-tuning, or one sparse training of the same length."""
    plans: dict[str, tuple[str, dict[str, Any]]] = {
        "magnitude, fine-tuned": ("magnitude", {"scope": "global"}),
        "gradual_magnitude": ("gradual_magnitude", {"scope": "global"}),
        "probmask": ("probmask", {"learning_rate_of_s": 0.03}),
        "str": ("str", {}),
        "powerpropagation alpha 2": ("powerpropagation", {"alpha": 2.0, "prune_at": 0.75}),
        "woodfisher, fine-tuned": ("woodfisher", {"samples": 600, "block": 500, "damp": 1e-4}),
        "spode, fine-tuned": ("spode", {}),
    }
    rows = []
    for density in densities:
        for name, (method, options) in plans.items():
            jobs = [Job("mlp", "digits", method, density, options=options, budget=budget, seed=s) for s in seeds]
            rows.append(row("equal steps", density, name, [Runner(j, data=data).run()[1] for j in jobs]))
    return rows


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
