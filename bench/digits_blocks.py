"""Digits MLP, 8x8 blocks, equal steps: block magnitude, AC/DC, SequentialAttention++ with and without soften phases.

    python bench/digits_blocks.py [--quick]

The second half multiplies every input pixel by 10^U(-1, 1).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from common import spread, write

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


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    plain, seeds = load_data("digits"), range(2 if quick else 4)
    per_epoch = -(-len(plain.x_train) // BATCH)
    steps = 600 if quick else STEPS
    budget = Budget(0.75 * steps / per_epoch, 0.25 * steps / per_epoch, BATCH, lr=0.05, finetune_lr=0.05)
    rows = []
    for inputs in ("plain", "scaled"):
        for density in (0.05,) if quick or inputs == "scaled" else (0.2, 0.1, 0.05):
            for name, method in METHODS.items():
                runs = []
                for seed in seeds:
                    data = plain if inputs == "plain" else scaled(plain, seed)
                    job = Job(
                        "mlp",
                        "digits",
                        density=density,
                        structure=Block(8, 8),
                        where=Select(min_units=100),
                        budget=budget,
                        seed=seed,
                        **method,
                    )
                    runs.append(Runner(job, data=data).run()[1])
                accuracy = spread([r.metrics["finetuned"]["accuracy"] for r in runs])
                rows.append(
                    {
                        "inputs": inputs,
                        "density": density,
                        "method": name,
                        "reached": runs[0].density,
                        "after": accuracy,
                    }
                )
                print(f"{inputs:7} {density:5} {name:22} {100 * accuracy['mean']:6.2f} {accuracy['values']}")
    write("digits_blocks_quick" if quick else "digits_blocks", rows, steps=steps, seeds=len(list(seeds)))


if __name__ == "__main__":
    main("--quick" in sys.argv)
