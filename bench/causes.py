"""What outcomes hang on where a claim of the flagship papers does not hold on the digits, and on the choices of one.

    python bench/causes.py [--quick] [--parts blocks choices tickets copies]

Block magnitude is closer behind than reported: its share of the steps, its rates. New weights under the mask of a
ticket train better than reported: the rate. One softmax over repeated pixels picks different ones: the steps it is
given. Choices are those of SequentialAttention++. With ``--parts`` their rows replace the earlier ones.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from common import earlier, row, spread, write
from feature_selection import COPIES, refit, split
from rounds_digits import BUDGET, trained_under, with_accuracy

from openwork.apps import select_features
from openwork.core.targets import Select
from openwork.data import DataSet, load_data
from openwork.lab import Budget, Job, Runner
from openwork.structure import Block

BATCH = 128
Rows = Iterator[dict[str, Any]]


def blocks(data: DataSet, quick: bool) -> Rows:
    """8 x 8 blocks in equal steps: the share of fine-tuning and its rate, and the rate of the whole."""
    steps, seeds = (300, 1) if quick else (3000, 4)
    epochs = steps / -(-len(data.x_train) // BATCH)
    splits = [(0.25, 1.0)] if quick else [(0.1, 1.0), (0.25, 1.0), (0.5, 1.0), (0.25, 0.1), (0.25, 0.01)]
    for density in (0.1,) if quick else (0.1, 0.05):
        for rate in (0.05,) if quick else (0.01, 0.05, 0.1):
            for method in ("magnitude", "acdc", "sequential_attention_pp"):
                for tuned, drop in splits if method == "magnitude" else [(0.25, 1.0)]:
                    budget = Budget((1 - tuned) * epochs, tuned * epochs, BATCH, lr=rate, finetune_lr=rate * drop)
                    job = Job("mlp", "digits", method, density, structure=Block(8, 8), budget=budget)
                    jobs = [replace(job, where=Select(min_units=100), seed=s) for s in range(seeds)]
                    told = f", {tuned:.0%} fine-tuning from {rate * drop:g}" if method == "magnitude" else ""
                    found = [Runner(j, data=data).run()[1] for j in jobs]
                    yield row(f"8 x 8 blocks, rate {rate:g}", density, method + told, found)


def choices(data: DataSet, quick: bool) -> Rows:
    """SequentialAttention++ with one choice changed at a time."""
    steps, seeds = (300, 1) if quick else (3000, 4)
    epochs = steps / -(-len(data.x_train) // BATCH)
    changes: list[dict[str, Any]] = [{}, {"clip": False}]
    if not quick:
        changes += [{"exponent": c} for c in (1.0, 2.0, 8.0)] + [{"learning_rate": r} for r in (0.3, 3.0)]
        changes += [{"decay_logits": False}, {"on_reactivate": "zero"}, {"reset_logits": True}, {"schedule": "criteo"}]
        changes += [{"sparsification": False}]
    budget = Budget(epochs, 0.0, BATCH, lr=0.05)
    for density in (0.1,) if quick else (0.1, 0.05):
        for change in changes:
            job = Job("mlp", "digits", "sequential_attention_pp", density, structure=Block(8, 8), options=change)
            jobs = [replace(job, budget=budget, where=Select(min_units=100), seed=s) for s in range(seeds)]
            told = ", ".join(f"{n}={v}" for n, v in change.items()) or "as published"
            yield row("SequentialAttention++", density, told, [Runner(j, data=data).run()[1] for j in jobs])


def tickets(data: DataSet, quick: bool) -> Rows:
    """Lottery tickets against new weights under the same masks, by the rate of all trainings."""
    level, seeds = (2, 1) if quick else (15, 3)
    for rate in (0.1,) if quick else (0.003, 0.01, 0.03, 0.1):
        budget = replace(BUDGET, lr=rate, **({"epochs": 2, "finetune_epochs": 2} if quick else {}))
        found: dict[str, list[Any]] = {"imp, rewound to step 0": [], "imp mask, new weights": []}
        for seed in range(seeds):
            job = Job("mlp", "digits", "imp", 0.8**level, options={"rounds": level}, budget=budget, seed=seed)
            result = Runner(job, data=data).run()[1]
            anew = with_accuracy(result, trained_under(result.masks, job, data, seed + 100))
            for runs, run in zip(found.values(), (result, anew), strict=True):
                runs.append(run)
        for name, runs in found.items():
            yield row(f"tickets, rate {rate:g}", round(0.8**level, 4), name, runs)


def copies(_: DataSet, quick: bool) -> Rows:
    """Ten of four times 64 pixels, by one softmax or ten, after more or fewer steps."""
    warnings.filterwarnings("ignore")  # the corners of the digits are constant, and few steps are wanted here
    for steps in (100,) if quick else (100, 400, 1000, 4000):
        for name, each in (("ten phases", 1), ("one softmax", 10)):
            picks, found = [], []
            for seed in range(1 if quick else 4):
                x, y, *test = split(seed, COPIES)
                chosen = select_features(x, y, 10, steps=steps, per_step=each, seed=seed).order
                picks.append(len({i % 64 for i in chosen}))
                found.append(refit((x, y, *test), chosen, 100 if quick else 2000, seed))  # type: ignore[arg-type]
            method = f"{name}, {sum(picks) / len(picks):.1f} different pixels"
            print(steps, method, found, flush=True)
            setting = f"four copies, {steps} steps"
            yield {"setting": setting, "density": 10 / (64 * COPIES), "method": method, "accuracy": spread(found)}


PARTS: dict[str, Callable[[DataSet, bool], Rows]] = {
    "blocks": blocks,
    "choices": choices,
    "tickets": tickets,
    "copies": copies,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "causes" + "_quick" * args.quick
    kept = [] if args.quick else [r for r in earlier(name) if r["part"] not in args.parts]
    data = load_data("digits")
    rows = kept + [{"part": p, **r} for p in args.parts for r in PARTS[p](data, args.quick)]
    write(
        name,
        sorted(rows, key=lambda r: list(PARTS).index(r["part"])),
        title="Digits, what outcomes hang on",
        command="python bench/causes.py",
        note="MLP 64-128-128-10. Blocks and SequentialAttention++: 3,000 steps in all, 4 seeds, the latter at rate "
        "0.05. Tickets: 25 epochs a level, 15 levels, 3 seeds. Copies: every pixel four times with a little noise, 10 "
        "picks, 4 seeds; a fresh MLP on them.",
    )


if __name__ == "__main__":
    main()
