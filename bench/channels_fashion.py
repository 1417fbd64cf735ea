"""Input channels of a LeNet on Fashion-MNIST: layer-wise SpODE against channel norms, the same fine-tuning.

    python bench/channels_fashion.py [--quick]

Densities are shares of parameters when both neighbours lose their channels; the square root of the channels stays.
"""

from __future__ import annotations

import math
import sys
import tempfile
from typing import Any

import torch
from common import row, trained, write

from openwork.core.targets import Select
from openwork.data import load_data
from openwork.lab import Budget, Job, Runner
from openwork.structure import InputChannel

NET = {"channels": (16, 32), "hidden": 64}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "channel norms, l1": ("magnitude", {"scope": "layer", "norm": "l1"}),
    "channel norms, l2": ("magnitude", {"scope": "layer"}),
    "snip": ("snip", {"scope": "layer", "batches": 10}),
    "taylor": ("taylor", {"scope": "layer"}),
    "spode, local": ("spode", {"scope": "local"}),
    "spode, local, paper": ("spode", {"scope": "local", "preset": "paper"}),
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("fashion-mnist"), range(1 if quick else 3)
    budget = Budget(0.05 if quick else 1, 0.05 if quick else 0.5, 128, lr=0.05, finetune_lr=0.02)
    common: dict[str, Any] = {"model": "lenet", "data": "fashion-mnist", "model_options": NET, "budget": budget}
    found: dict[tuple[float, str], list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            start = trained(Job(seed=seed, **common), data, folder)
            for density in (0.28,) if quick else (0.28, 0.14, 0.07):
                for name, (method, options) in METHODS.items():
                    job = Job(
                        method=method,
                        density=math.sqrt(density),
                        structure=InputChannel(),
                        where=Select(exclude=("0.weight",)),
                        options=options,
                        seed=seed,
                        checkpoint=start,
                        **common,
                    )
                    found.setdefault((density, name), []).append(Runner(job, data=data).run()[1])
    rows = []
    for (density, name), results in found.items():
        rows += [row("after pruning", density, name, results, "pruned")]
        rows += [row("fine-tuned", density, name, results)]
    write(
        "channels_fashion_quick" if quick else "channels_fashion",
        rows,
        title="Fashion-MNIST, LeNet, input channels",
        command="python bench/channels_fashion.py",
        note=f"Every layer but the first, the same share in each; one epoch dense, half an epoch of fine-tuning, "
        f"{len(seeds)} seeds. Density is the share of parameters; its square root of the channels stays.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
