"""Beta-Rank on imbalanced data: chest X-rays with few normal pictures, and Fashion-MNIST with shrinking classes.

    python bench/beta_rank.py [--quick] [--x-rays] [--seeds=3]

pneumoniamnist.npz (found through OPENWORK_ASSETS) and Fashion-MNIST must be on the machine; a setting whose data are
missing is left out.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from common import spread, write
from training import accuracy, balanced, fit, pruned

import openwork as ow
from openwork.data import DataSet, load_data
from openwork.errors import DataError
from openwork.methods import beta_rank, magnitude, random


def geometric(data: DataSet, first: int, ratio: float) -> DataSet:
    """Class k keeps ``first * ratio^k`` training pictures, the first ones."""
    counts = [max(2, round(first * ratio**k)) for k in range(data.classes)]
    kept = [(data.y_train == k).nonzero().flatten()[:n] for k, n in enumerate(counts)]
    at = torch.cat(kept).sort().values
    return replace(data, x_train=data.x_train[at], y_train=data.y_train[at])


def settings(quick: bool) -> dict[str, DataSet]:
    """Name -> data."""
    if quick:
        return {"digits, ratio 0.7": geometric(load_data("digits"), 120, 0.7)}
    found: dict[str, DataSet] = {}
    try:
        found["chest X-rays, 300 normal of 3,794"] = load_data("pneumonia-mnist", normal=300)
        if "--x-rays" in sys.argv:
            return found
        found["Fashion-MNIST, ratio 0.5"] = geometric(load_data("fashion-mnist"), 4000, 0.5)
    except DataError as problem:
        print(f"left out: {problem}")
    return found


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    seeds = 1 if quick else next((int(a[8:]) for a in sys.argv if a.startswith("--seeds=")), 3)
    rows: list[dict[str, Any]] = []
    for setting, data in settings(quick).items():
        x, y = data.x_train, data.y_train
        found: dict[str, list[dict[str, float]]] = {}
        for seed in range(seeds):
            torch.manual_seed(seed)
            options = {} if quick else {"stem_stride": 2}
            model = ow.build_model("resnet8", data.input_shape, data.classes, **options)
            fit(model, x, y, 2 if quick else 4, seed, lr=0.05, batch=64)
            found.setdefault("dense", []).append({"balanced": balanced(model, data), "accuracy": accuracy(model, data)})
            structure = ow.channels(example=x[:16])
            seen = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:256]]
            plans = {
                "random": random(0.5, structure, scope="layer"),
                "channel norms, l1": magnitude(0.5, structure, norm="l1", scope="layer"),
                "beta_rank, out / in (code)": beta_rank(0.5, structure),
                "beta_rank, in / out (equation)": beta_rank(0.5, structure, ratio="in_over_out"),
            }
            for name, recipe in plans.items():
                made, result = pruned(model, recipe, [seen], seed=seed)
                ow.recalibrate(made, [seen], 1)
                once = balanced(made, data)
                small = ow.compact(made, result)
                fit(small, x, y, 1, seed, lr=0.02, batch=64)
                last = {"pruned": once, "balanced": balanced(small, data), "accuracy": accuracy(small, data)}
                found.setdefault(name, []).append(last)
        for name, runs in found.items():
            row: dict[str, Any] = {"setting": setting, "method": name, "share": 1.0 if name == "dense" else 0.5}
            row |= {key: spread([r[key] for r in runs]) for key in runs[0]}
            print(
                f"{setting:34} {name:32} {100 * row['balanced']['mean']:6.2f} {row['balanced']['values']}", flush=True
            )
            rows.append(row)
        write(
            "beta_rank_quick" if quick else "beta_rank",
            rows,
            title="Beta-Rank on imbalanced data",
            command="python bench/beta_rank.py",
            columns={
                "data": "setting",
                "channels": "share:g",
                "method": "method",
                "after pruning, balanced": "pruned:spread",
                "fine-tuned, balanced": "balanced:spread",
                "fine-tuned": "accuracy:spread",
            },
            note="ResNet-8 (stem stride 2), 4 epochs, half of the channels of every group gone, compacted, one epoch "
            f"of fine-tuning, seeds: {seeds}. Balanced accuracy: the mean over classes. Scores from one batch of 256 "
            "pictures.",
        )


if __name__ == "__main__":
    main("--quick" in sys.argv)
