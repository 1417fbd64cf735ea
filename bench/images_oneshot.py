"""One-shot criteria on trained image networks, before and after the same fine-tuning.

    python bench/images_oneshot.py [fashion | photopatch | cifar] [--quick]

The dense control is fine-tuned as long. ``cifar`` begins with the trained ResNet-20 of the folder that
``OPENWORK_ASSETS`` names; its seeds differ in the order of the data only.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import spread, trained, write

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner

METHODS: dict[str, dict[str, Any]] = {
    "random (ERK)": {"method": "random", "options": {"scope": "erk"}},
    "magnitude (layer)": {"method": "magnitude", "options": {"scope": "layer"}},
    "magnitude (global)": {"method": "magnitude", "options": {"scope": "global"}},
    "global_mp (floor)": {"method": "global_mp"},
    "snip": {"method": "snip", "options": {"batches": 10}},
    "grasp": {"method": "grasp"},
    "synflow": {"method": "synflow"},
    "spode": {"method": "spode"},
}


SMALL: dict[str, Any] = {"model": "resnet8", "model_options": {"stem_stride": 2}}
SETTINGS: dict[str, dict[str, Any]] = {
    "fashion": {
        **SMALL,
        "data": "fashion-mnist",
        "budget": Budget(epochs=3, finetune_epochs=1, batch_size=128, lr=0.1, finetune_lr=0.05),
    },
    "photopatch": {
        **SMALL,
        "data": "photopatch-27",
        "budget": Budget(epochs=6, finetune_epochs=1, batch_size=128, lr=0.1, finetune_lr=0.05),
    },
    "cifar": {
        "model": "resnet20",
        "data": "cifar10-jpeg",
        "data_options": {"test": 2000},
        "budget": Budget(epochs=1, finetune_epochs=1, batch_size=128, lr=0.1, finetune_lr=0.05),
    },
}
TITLES = {
    "fashion": "Fashion-MNIST, ResNet-8",
    "photopatch": "PhotoPatch-27, ResNet-8",
    "cifar": "CIFAR-10 as JPEG, trained ResNet-20",
}


def main(setting: str, quick: bool) -> None:
    torch.set_num_threads(1)
    common = SETTINGS[setting]
    data = load_data(common["data"], **common.get("data_options", {}))
    seeds = range(1 if quick else 2 if setting == "cifar" else 3)
    densities = (0.05,) if quick else (0.05, 0.02) if setting == "cifar" else (0.10, 0.05, 0.02)
    runs: dict[tuple[float, str], list[Any]] = {}
    dense, control = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            if setting == "cifar":
                start = str(Path(os.environ["OPENWORK_ASSETS"]) / "resnet20_cifar10.safetensors")
            else:
                start = trained(Job(seed=seed, **common), data, folder)
            result = Runner(Job(density=1.0, seed=seed, checkpoint=start, **common), data=data).run()[1]
            dense.append(result.metrics["dense"]["accuracy"])
            control.append(result.metrics["finetuned"]["accuracy"])
            print(f"seed {seed}: dense {dense[-1]:.4f}, control {control[-1]:.4f}", flush=True)
            for density in densities:
                for name, method in METHODS.items():
                    began = time.monotonic()
                    job = Job(density=density, seed=seed, checkpoint=start, **common, **method)
                    runs.setdefault((density, name), []).append(Runner(job, data=data).run()[1])
                    m = runs[density, name][-1].metrics
                    line = " ".join(f"{m[k]['accuracy']:.4f}" for k in ("pruned", "recalibrated", "finetuned"))
                    print(f"  {density} {name:20} {line}  {time.monotonic() - began:.0f} s", flush=True)
            rows = [_row(density, name, found) for (density, name), found in runs.items()]
            name = f"{setting}_oneshot"
            write(
                f"{name}_quick" if quick else name,
                rows,
                title=TITLES[setting],
                dense=spread(dense),
                control=spread(control),
            )


def _row(density: float, name: str, runs: list[Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "density": density,
        "method": name,
        "kept": [r.counts.kept for r in runs],
        "seeds": len(runs),
    }
    for stage in ("pruned", "recalibrated", "finetuned"):
        row[stage] = spread([r.metrics[stage]["accuracy"] for r in runs])
    row["smallest_layer"] = min(t["kept"] for r in runs for t in r.tensors if t["units"])
    return row


if __name__ == "__main__":
    named = [a for a in sys.argv[1:] if not a.startswith("--")]
    main(named[0] if named else "fashion", "--quick" in sys.argv)
