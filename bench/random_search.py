"""Is the best of many random networks at initialisation better than any? Nodes of the digits MLP, equal training.

python bench/random_search.py [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import spread, write

import openwork as ow
from openwork.data import load_data
from openwork.lab import Budget, Job, Runner


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(2 if quick else 8)
    budget = Budget(epochs=1 if quick else 15, finetune_epochs=0, batch_size=64, lr=0.1)
    nodes = ow.channels(example=data.x_train[:2])
    rows: list[dict[str, Any]] = []
    for density in (0.5,) if quick else (0.5, 0.125, 0.0625, 0.03125):
        runs: dict[str, list[Any]] = {}
        for name, options in (("random", {"scope": "layer"}), ("random_search", {"draws": 20 if quick else 500})):
            for seed in seeds:
                common: dict[str, Any] = {"structure": nodes, "budget": budget, "at": "init", "seed": seed}
                job = Job("mlp", "digits", name, density, options=options, **common)
                runs.setdefault(name, []).append(Runner(job, data=data).run()[1])
        found = {n: [r.metrics["finetuned"]["accuracy"] for r in done] for n, done in runs.items()}
        found["difference"] = [b - a for a, b in zip(found["random"], found["random_search"], strict=True)]
        rows += [{"density": density, "method": n, "accuracy": spread(values)} for n, values in found.items()]
        told = [r.log[-1]["search"]["losses"] for r in runs["random_search"]]
        rows[-2]["gain"] = spread([sum(v) / len(v) - min(v) for v in told])["mean"]
        for r in rows[-3:]:
            print(r["density"], r["method"], r["accuracy"], r.get("gain"), flush=True)
    write(
        "random_search_quick" if quick else "random_search",
        rows,
        title="Random search over nodes at initialisation",
        command="python bench/random_search.py",
        note=f"Digits MLP 64-128-128-10, the same share of nodes in both hidden layers, 500 draws scored on one batch, "
        f"15 epochs, {len(seeds)} seeds. The gain is the loss of the mean draw less that of the best, before training.",
        columns={"nodes": "density:g", "method": "method", "accuracy": "accuracy:spread", "gain at init": "gain:.3f"},
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
