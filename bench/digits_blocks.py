"""Digits MLP, 8x8 blocks, equal steps: block magnitude, AC/DC, SequentialAttention++ with and without soften phases.

    python bench/digits_blocks.py [--quick] [--inputs plain scaled]

The second half multiplies every input pixel by 10^U(-1, 1), at two learning rates: what is best for one method is not
for another there. With ``--inputs`` its rows replace the earlier ones.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from common import earlier, spread, write

from openwork.core.targets import Select
from openwork.data import DataSet, load_data
from openwork.lab import Budget, Job, Runner
from openwork.structure import Block

STEPS, BATCH = 3000, 128
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "acdc": {"method": "acdc"},
    "sa++ without soften": {"method": "sequential_attention_pp", "options": {"sparsification": False}},
    "sa++": {"method": "sequential_attention_pp"},
}


def scaled(data: DataSet, seed: int) -> DataSet:
    """Every input pixel multiplied by 10^U(-1, 1)."""
    rng = torch.Generator().manual_seed(1000 + seed)
    factor = 10 ** (2 * torch.rand(data.x_train.shape[1:], generator=rng) - 1)
    return replace(data, x_train=data.x_train * factor, x_test=data.x_test * factor)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--inputs", nargs="+", choices=("plain", "scaled"), default=["plain", "scaled"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "digits_blocks" + "_quick" * args.quick
    steps, seeds = (600, 2) if args.quick else (STEPS, 4)
    rows = [r for r in ([] if args.quick else earlier(name)) if r["inputs"] not in args.inputs]
    for inputs in args.inputs:
        for density in (0.05,) if args.quick or inputs == "scaled" else (0.2, 0.1, 0.05):
            for rate in (0.05,) if args.quick or inputs == "plain" else (0.05, 0.02):
                rows += [measure(inputs, density, rate, method, steps, seeds) for method in METHODS]
    write(name, sorted(rows, key=lambda r: r["inputs"]), steps=steps, seeds=seeds)


def measure(inputs: str, density: float, rate: float, method: str, steps: int, seeds: int) -> dict[str, Any]:
    """One row."""
    plain = load_data("digits")
    per_epoch = -(-len(plain.x_train) // BATCH)
    budget = Budget(0.75 * steps / per_epoch, 0.25 * steps / per_epoch, BATCH, lr=rate, finetune_lr=rate)
    runs = []
    for seed in range(seeds):
        data = plain if inputs == "plain" else scaled(plain, seed)
        where = Select(min_units=100)
        common: Any = {"structure": Block(8, 8), "where": where, "budget": budget, "seed": seed}
        runs.append(Runner(Job("mlp", "digits", density=density, **common, **METHODS[method]), data=data).run()[1])
    accuracy = spread([r.metrics["finetuned"]["accuracy"] for r in runs])
    print(f"{inputs:7} {density:5} {rate:5} {method:22} {100 * accuracy['mean']:6.2f} {accuracy['values']}", flush=True)
    found = {"inputs": inputs, "density": density, "rate": rate, "method": method}
    return {**found, "reached": runs[0].density, "after": accuracy}


if __name__ == "__main__":
    main()
