"""MaskSparsity against a penalty on all scales, and against removing the smallest scales without any penalty.

    python bench/masksparsity.py [--quick | --digits]

Without --digits Fashion-MNIST must be on the machine. All rows train for the same steps and remove half of the channels
of every group at the last of them; then all are compacted and fine-tuned alike.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from common import spread, write
from torch import nn
from training import accuracy, fit

import openwork as ow
from openwork.data import load_data
from openwork.methods import masksparsity

LAM = 0.1
"""Ten epochs at a mean rate of 0.05 then move a scale by 1 within half of the steps, so that it can reach zero."""
ROWS: dict[str, dict[str, Any]] = {
    "masksparsity": {"slim": 0.3, "choose": 0.5, "lam": LAM},
    "penalty on all scales": {"slim": 0.3, "choose": 0.95, "lam": LAM, "restart": False},
    "penalty on all scales, a third of lam": {"slim": 0.3, "choose": 0.95, "lam": LAM / 3, "restart": False},
    "penalty on all scales, a tenth of lam": {"slim": 0.3, "choose": 0.95, "lam": LAM / 10, "restart": False},
    "no penalty": {"slim": 0.95, "choose": 0.95, "lam": 0.0},
}


def plain_cnn(input_shape: Sequence[int], widths: tuple[int, int, int] = (16, 32, 32)) -> nn.Sequential:
    """Three convolutions with norms, the mean over the pixels, a linear layer."""
    a, b, c = widths
    return nn.Sequential(
        nn.Conv2d(input_shape[0], a, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
        nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
        nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10),
    )  # fmt: skip


class Watched:
    """A run that keeps a copy of the model from before the removal."""

    def __init__(self, model: nn.Module, recipe: ow.Recipe, optimizer: torch.optim.Optimizer):
        self.before, self.steps, last = model, 0, recipe.schedule.last

        def look(*_: Any) -> None:
            self.steps += 1
            if self.steps == last:
                self.before = copy.deepcopy(model)

        optimizer.register_step_post_hook(look)  # stands before the hook of the run, which removes
        self.run = ow.attach(model, recipe, optimizer)


def main(quick: bool, digits: bool) -> None:
    torch.set_num_threads(1)
    data = load_data("digits" if quick or digits else "fashion-mnist")
    x, y = data.x_train[:10_000], data.y_train[:10_000]
    data = replace(data, x_test=data.x_test[:5000], y_test=data.y_test[:5000])
    epochs = 1 if quick else 20 if digits else 10
    steps = max(1, round(epochs * len(x) / 128))
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(1 if quick else 3):
        for name, options in ROWS.items():
            torch.manual_seed(seed)
            model = plain_cnn(data.input_shape)
            recipe = masksparsity(0.5, ow.channels(example=x[:2]), steps=steps, remove=1.0, **options)
            watched = fit(model, x, y, epochs, seed, attach=lambda o, m=model, r=recipe: Watched(m, r, o))
            result = watched.run.finish()
            runs = {"before": accuracy(watched.before, data), "pruned": accuracy(model, data)}
            ow.recalibrate(model, [x[:2000]], 1)
            runs["recalibrated"] = accuracy(model, data)
            small = ow.compact(model, result)
            fit(small, x, y, 1, seed, lr=0.02)
            told = {k: result.log[-1][k] for k in ("scale_kept", "scale_removed")}
            found.setdefault(name, []).append(runs | {"finetuned": accuracy(small, data), **told})
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"method": name, **{k: spread([r[k] for r in runs]) for k in runs[0]}}
        print(f"{name:38} " + " ".join(f"{k} {row[k]['mean']:.4f}" for k in runs[0]), flush=True)
        rows.append(row)
    write(
        "masksparsity_quick" if quick else "masksparsity",
        rows,
        title="MaskSparsity, half of the channels of every group",
        command="python bench/masksparsity.py" + " --digits" * digits,
        columns={
            "method": "method",
            "before removal": "before:spread",
            "after": "pruned:spread",
            "with norms measured anew": "recalibrated:spread",
            "fine-tuned": "finetuned:spread",
        },
        note=f"CNN 16-32-32 with norms on {len(x):,} pictures of {data.name}, {epochs} epochs, lam {LAM:g}, then one "
        "epoch of fine-tuning, 3 seeds; from the dense training without a penalty the smallest scales go.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv, "--digits" in sys.argv)
