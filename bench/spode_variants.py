"""SpODE's settings on the digits MLP: steps, radius and its search, batches, precision of the sums, polarisers.

    python bench/spode_variants.py [--quick]

Every variant prunes the same trained networks; then 20 epochs at the paper's rate of 0.01.
"""

from __future__ import annotations

import math
import sys
import tempfile
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from common import accuracies, trained, write
from torch import Tensor

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner
from openwork.rules import path, spode

VARIANTS: dict[str, dict[str, Any]] = {
    "default (N=100, r=1.1)": {},
    "paper": {"preset": "paper"},
    "N=30": {"steps": 30},
    "N=300": {"steps": 300},
    "N=1000": {"steps": 1000},
    "N = 2 / density": {"steps": lambda density: round(2 / density)},
    "N = 10 / density": {"steps": lambda density: round(10 / density)},
    "r=1.02": {"radius": 1.02},
    "r=1.4": {"radius": 1.4},
    "r=2": {"radius": 2.0},
    "r=1.4, paper": {"radius": 1.4, "preset": "paper"},
    "r=2, paper": {"radius": 2.0, "preset": "paper"},
    "radius search": {"radius_path": "search"},
    "4 batches per step": {"batches": 4},
    "l1 measure": {"measure": "l1"},
    "local": {"scope": "local"},
    "clamp": {"clamp": True},
    "momentum 0.9": {"momentum": 0.9},
    "linear path": {"path": "lin"},
    "hess path": {"path": "hess"},
    "ohm": {"polariser": "ohm"},
    "qt": {"polariser": "qt"},
    "gau": {"polariser": "gau"},
    "sums in float32": {},
    "the code's direction, float32": {},
}


def dot32(a: Tensor, b: Tensor) -> float:
    """Inner product in float32."""
    return float(sum((x * y).sum() for x, y in zip(path.pieces(a), path.pieces(b), strict=True)))


def norm32(a: Tensor) -> float:
    """Euclidean norm in float32."""
    return math.sqrt(dot32(a, a))


def direction32(e: Tensor, g: Tensor, radius: float) -> Tensor:
    """``x e + y g`` as the paper's code computes it, in float32 and with 1e-12 under the roots."""
    ee, gg, eg = (e * e).sum(), (g * g).sum(), (e * g).sum()
    x = ((radius**2 - 1) / (gg * ee - eg**2 + 1e-12).clamp_min(0)).sqrt()
    return x * e + (1 - x * eg) / gg * g


PATCHES = {
    "sums in float32": [(path, "dot", dot32), (path, "norm", norm32)],
    "the code's direction, float32": [(spode, "direction", direction32)],
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    budget = Budget(epochs=40, finetune_epochs=1 if quick else 20, batch_size=64, lr=0.1, finetune_lr=0.01)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            trained(Job("mlp", "digits", budget=budget, seed=seed), data, folder)
        for density in (0.05,) if quick else (0.05, 0.02, 0.01):
            for name, options in list(VARIANTS.items())[: 3 if quick else None]:
                jobs = [
                    Job(
                        "mlp",
                        "digits",
                        "spode",
                        density,
                        options={k: v(density) if callable(v) else v for k, v in options.items()},
                        budget=budget,
                        seed=seed,
                        checkpoint=f"{folder}/{seed}.safetensors",
                    )
                    for seed in seeds
                ]
                with ExitStack() as stack:
                    for place, attribute, other in PATCHES.get(name, ()):
                        stack.enter_context(patch.object(place, attribute, other))
                    runs = [Runner(j, data=data).run()[1] for j in jobs]
                before, after = accuracies(runs, "pruned"), accuracies(runs)
                print(f"{density:5} {name:26} {100 * before['mean']:6.2f} {100 * after['mean']:6.2f}", flush=True)
                rows.append({"density": density, "method": name, "before": before, "after": after})
    write("spode_variants_quick" if quick else "spode_variants", rows, seeds=len(seeds))


if __name__ == "__main__":
    main("--quick" in sys.argv)
