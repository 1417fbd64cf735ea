"""Methods in rounds on the digits MLP: lottery tickets and their controls, learning-rate rewinding, iterative SpODE.

python bench/rounds_digits.py [--quick]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from common import row, table, write

import openwork as ow
from openwork.core.masks import Masks
from openwork.data import DataSet, load_data
from openwork.lab import Budget, Job, Runner
from openwork.lab.evaluate import evaluate

BUDGET = Budget(epochs=25, finetune_epochs=25, batch_size=64, lr=0.1, finetune_lr=0.05, rewind=0.0)


def trained_under(masks: Masks, job: Job, data: DataSet, seed: int) -> Any:
    """The accuracy of the job's model, initialised with ``seed``, trained with these masks from the first step."""
    runner = Runner(replace(job, seed=seed, method="magnitude", density=1.0, options={}), data=data)
    budget, steps = job.budget, runner.dense_steps
    with ow.hold(runner.model, masks):
        runner._train("train", steps, 0, lambda s: budget.rate(s, steps, budget.lr), None)
    return evaluate(runner.model, data.x_test, data.y_test)


def with_accuracy(result: Any, metrics: Any) -> Any:
    """The same result with another final accuracy."""
    found = replace(result)
    found.metrics = {"finetuned": metrics}
    return found


def shuffled(masks: Masks, seed: int) -> Masks:
    """Random masks with the same count in every tensor."""
    rng = torch.Generator().manual_seed(seed)
    return Masks({n: m.flatten()[torch.randperm(m.numel(), generator=rng)].reshape(m.shape) for n, m in masks.items()})


def tickets(data: DataSet, levels: tuple[int, ...], seeds: range, budget: Budget) -> list[dict[str, Any]]:
    """IMP with rewinding to the first step, and what its mask is worth with other weights."""
    rows = []
    for level in levels:
        density = 0.8**level
        found: dict[str, list[Any]] = {}
        for seed in seeds:
            job = Job("mlp", "digits", "imp", density, options={"rounds": level}, budget=budget, seed=seed)
            result = Runner(job, data=data).run()[1]
            once = replace(job, method="magnitude", options={"scope": "global"})
            shot = Runner(once, data=data).run()[1]
            found.setdefault("imp, rewound to step 0", []).append(result)
            for name, masks, start in (
                ("imp mask, new weights", result.masks, seed + 100),
                ("imp counts, random mask", shuffled(result.masks, seed), seed),
                ("one-shot mask, rewound", shot.masks, seed),
            ):
                found.setdefault(name, []).append(with_accuracy(result, trained_under(masks, job, data, start)))
            found.setdefault("one-shot, fine-tuned", []).append(shot)
        rows += [row("lottery tickets", round(density, 4), name, runs) for name, runs in found.items()]
    return rows


def rounds(data: DataSet, densities: tuple[float, ...], seeds: range, budget: Budget) -> list[dict[str, Any]]:
    """Equal training: ten rounds of fine-tuning after magnitude or SpODE; rewinding of the learning rate."""
    tuned = replace(budget, finetune_epochs=2 * budget.finetune_epochs)
    last = replace(budget, finetune_lr=0.001)
    plans: dict[str, dict[str, Any]] = {
        "magnitude, 10 rounds": {"method": "imp", "options": {"rounds": 10, "rewind": "none"}, "budget": tuned},
        "spode_iterative, 10 rounds": {"method": "spode_iterative", "options": {"rounds": 10}, "budget": tuned},
        "spode, one shot": {"method": "spode", "budget": tuned},
        "lr rewinding, 1 round": {"method": "imp", "options": {"rounds": 1, "rewind": "lr"}, "budget": budget},
        "fine-tuning at the last rate": {"method": "magnitude", "options": {"scope": "global"}, "budget": last},
    }
    return table("rounds", data, seeds, densities, plans, model="mlp")


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    budget = replace(BUDGET, epochs=3, finetune_epochs=3) if quick else BUDGET
    rows = tickets(data, (3,) if quick else (8, 12, 15, 17), seeds, budget)
    rows += rounds(data, (0.05,) if quick else (0.1, 0.05, 0.02, 0.01), seeds, budget)
    write(
        "rounds_digits_quick" if quick else "rounds_digits",
        rows,
        title="Digits, pruning in rounds",
        command="python bench/rounds_digits.py",
        note=f"MLP 64-128-128-10, {len(seeds)} seeds. Tickets: 25 epochs per level, 20 % of the survivors per level; "
        "controls train equally long. Rounds: 50 epochs of fine-tuning in all; rewinding and its control: 25.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
