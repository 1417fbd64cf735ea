"""Three convolutions on Fashion-MNIST: blocks of 4 and 8, and what happens inside AC/DC, STR and ProbMask there.

    python bench/small_cnn.py [--quick] [--parts blocks phases thresholds probabilities]

With ``--parts`` their rows replace the earlier ones.
"""

from __future__ import annotations

import argparse
from typing import Any

import mechanisms
import torch
from common import earlier, spread, write
from models import three_convolutions
from torch import nn

from openwork.core.targets import Select
from openwork.data import DataSet, load_data
from openwork.lab import Budget, Job, Runner
from openwork.structure import Block

BATCH = 60
PARTS = {"phases": mechanisms.acdc, "thresholds": mechanisms.thresholds, "probabilities": mechanisms.probabilities}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "AC/DC": {"method": "acdc"},
    "AC/DC, masking": {"method": "acdc", "options": {"on_decompress": "keep"}},
    "SequentialAttention++ without soften phases": {
        "method": "sequential_attention_pp",
        "options": {"sparsification": False},
    },
    "SequentialAttention++": {"method": "sequential_attention_pp"},
}


def build(seed: int) -> nn.Module:
    """The network with the weights of a seed."""
    torch.manual_seed(seed)
    return three_convolutions((1, 28, 28), 10)


def blocks(data: DataSet, seed: int, steps: int) -> mechanisms.Found:
    """Equal steps for every method; layers with fewer than 100 blocks stay dense, and the first is one of them."""
    found: mechanisms.Found = {}
    epochs = steps * BATCH / len(data.x_train)
    budget = Budget(0.75 * epochs, 0.25 * epochs, BATCH, lr=0.1, finetune_lr=0.1)
    for size in (4, 8):
        for density in (0.1, 0.05):
            for name, method in METHODS.items():
                common: Any = {"structure": Block(size, size), "where": Select(min_units=100), "budget": budget}
                job = Job("models:three_convolutions", "fashion-mnist", density=density, seed=seed, **common, **method)
                result = Runner(job, data=data).run()[1]
                case = f"{size} x {size} blocks at {density:g}, {name}"
                found[case, "accuracy at the end"] = result.metrics["finetuned"]["accuracy"]
                first = next(t for t in result.tensors if t["name"].startswith("0."))
                found[case, "density of the first layer"] = first["density"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=["blocks", *PARTS], default=["blocks", *PARTS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "small_cnn" + "_quick" * args.quick
    data, steps, seeds = load_data("fashion-mnist"), *((100, 1) if args.quick else (2000, 3))
    rows = [r for r in ([] if args.quick else earlier(name)) if r["part"] not in args.parts]
    for part in args.parts:
        if part == "blocks":
            runs = [blocks(data, s, steps) for s in range(seeds)]
        else:
            runs = [PARTS[part](data, s, steps, build) for s in range(seeds)]
        for case, what in runs[0]:
            rows.append({"part": part, "case": case, "what": what, **spread([r[case, what] for r in runs])})
            print(f"{part:14} {case:50} {what:46} {rows[-1]['mean']:10.4g} {rows[-1]['values']}", flush=True)
        write(
            name,
            rows,
            title="Three convolutions on Fashion-MNIST",
            command="python bench/small_cnn.py",
            note=f"{steps} steps of {BATCH}, cosine rate from 0.1; spread over {seeds} seeds. Blocks: a quarter "
            "of the steps after the last cut, from 0.1 anew.",
        )


if __name__ == "__main__":
    main()
