"""SAP against a fixed fifth per round (IMP), both rewound: accuracy by density and rounds; the PQ index on the way.

python bench/adaptive_rounds.py [--quick]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from common import accuracies, write

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    epochs = 2 if quick else 25
    rows: list[dict[str, Any]] = []
    for density in (0.3,) if quick else (0.168, 0.035, 0.0144):
        for name, method, options in (
            ("imp, a fifth a round", "imp", {}),
            ("imp, 5 rounds", "imp", {"rounds": 5}),
            ("sap, 5 rounds", "sap", {"rounds": 5}),
            ("sap, 10 rounds", "sap", {"rounds": 10}),
            ("sap of neurons, 5 rounds", "sap", {"rounds": 5, "scope": "neuron"}),
        ):
            runs = []
            for seed in seeds:
                job = Job("mlp", "digits", method, density, options=options, seed=seed)
                count = job.build_recipe(1).schedule.rounds  # type: ignore[attr-defined]
                budget = Budget(epochs, epochs * count, 64, lr=0.1, finetune_lr=0.1)
                runs.append(Runner(replace(job, budget=budget), data=data).run()[1])
            path = [entry["sap"]["pq_index"] for entry in runs[0].log if "sap" in entry]
            rows.append({"density": density, "method": name, "rounds": count, "accuracy": accuracies(runs)})
            rows[-1]["path"] = " ".join(f"{v:.2f}" for v in path)
            print(density, name, count, rows[-1]["accuracy"]["mean"], rows[-1]["path"], flush=True)
    write(
        "adaptive_rounds_quick" if quick else "adaptive_rounds",
        rows,
        title="Adaptive rounds (SAP) against fixed ones",
        command="python bench/adaptive_rounds.py",
        note=f"Digits MLP 64-128-128-10, {epochs} epochs a round at learning rate 0.1, weights rewound to the start, "
        f"{len(seeds)} seeds. The PQ index is that of the living weights before each round prunes (first seed).",
        columns={
            "density": "density:g",
            "method": "method",
            "rounds": "rounds",
            "accuracy": "accuracy:spread",
            "PQ index": "path",
        },
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
