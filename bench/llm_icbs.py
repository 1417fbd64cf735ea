"""iCBS: what re-deciding blocks of a mask brings, on the digits and on a real, small language model.

Digits: MLP 64-64-64-10, density 0.2, blocks of 256, 3 seeds, loss and accuracy on held-out digits after so many steps.
Language model: the 260,032-parameter Llama trained on TinyStories, all matrices of its blocks at 50 %; three draws of
64 windows. ``--part`` measures one of the two and keeps the rows of the other. ``--quick``: one seed, few steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from common import earlier, spread, write
from stories import load
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.methods import icbs, magnitude, snip, wanda

MATRICES = ow.Select(include=("model.layers.*",))
Rows = Iterator[dict[str, Any]]


def digits_net(seed: int) -> tuple[nn.Module, list[Any], tuple[torch.Tensor, torch.Tensor]]:
    """A trained network, its training batches, and the held-out digits."""
    data = ow.load_data("digits")
    x, y = data.x_train, data.y_train
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(30):
        for at in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
    return model, [(x, y)], (data.x_test, data.y_test)


@torch.no_grad()
def measured(model: nn.Module, test: Any) -> tuple[float, float]:
    out = model(test[0])
    return float(F.cross_entropy(out, test[1])), float((out.argmax(1) == test[1]).double().mean())


def digits(quick: bool) -> Rows:
    """Steps, starts, solvers, and the run without the queue and the fixed weights."""
    plans: dict[str, Any] = {
        "magnitude": magnitude(0.2),
        "wanda": wanda(0.2),
        "gradient (snip)": snip(0.2, scope="layer"),
    }
    for steps in (25,) if quick else (25, 50, 100, 200):
        plans[f"icbs, swap, {steps} steps"] = icbs(0.2, steps=steps, samples=200, groups=4, solver="swap")
    if not quick:
        plans["icbs, annealing, 25 steps"] = icbs(0.2, steps=25, samples=200, groups=4)
        free = {"fix_pruned": 0.0, "fix_kept": 0.0, "tabu": 0.0}
        for steps in (25, 100):
            plans[f"icbs, swap, {steps} steps, nothing fixed, no queue"] = icbs(
                0.2, steps=steps, samples=200, groups=4, solver="swap", **free
            )
    for name, recipe in plans.items():
        losses, right, seconds, density = [], [], [], []
        for seed in range(1 if quick else 3):
            model, data, test = digits_net(seed)
            began = time.process_time()
            result = ow.prune(model, recipe, data=data, loss=F.cross_entropy, seed=seed)
            seconds.append(time.process_time() - began)
            loss, accuracy = measured(model, test)
            losses.append(loss)
            right.append(accuracy)
            density.append(result.density)
        print(f"{name:50} loss {spread(losses)['mean']:.3f} accuracy {100 * spread(right)['mean']:.1f}", flush=True)
        yield {"setting": "digits MLP", "density": density[0], "method": name, "loss": spread(losses),
               "accuracy": spread(right), "after": spread(right), "seconds": spread(seconds)}  # fmt: skip


def stories(quick: bool) -> Rows:
    """Two starts, two densities."""
    text = load()
    density = 0.5
    for start, per_row in (("magnitude", False), ("wanda", True)):
        for steps in (0, 4) if quick else (0, 100):
            found: dict[str, list[float]] = {k: [] for k in ("validation", "unseen", "seconds", "predicted")}
            for seed in range(1 if quick or (steps == 0 and start == "magnitude") else 3):
                model = text.model()
                recipe = icbs(density, where=MATRICES, start=start, per_row=per_row, steps=steps, block=512,
                              samples=4 if quick else 8, groups=1 if quick else 8, solver="swap")  # fmt: skip
                began = time.process_time()
                data = text.batches(1 if quick else 8, 8, 128 if quick else 256, seed)
                result = ow.prune(model, recipe, data=data, seed=seed)
                found["seconds"].append(time.process_time() - began)
                found["predicted"].append(result.log[0]["descent"]["predicted"])
                for name, value in text.both(model).items():
                    found[name].append(value)
            row = {"setting": "stories260K", "density": density, "method": f"icbs from {start}, {steps} steps",
                   **{k: spread(v) for k, v in found.items()},
                   "after": spread([1 / v for v in found["unseen"]])}  # fmt: skip
            mean = {k: v["mean"] for k, v in row.items() if isinstance(v, dict)}
            print(f"{density} {row['method']:32} validation {mean['validation']:.2f} unseen {mean['unseen']:.2f} "
                  f"in {mean['seconds']:.0f} s", flush=True)  # fmt: skip
            yield row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=["digits", "stories"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    stem = "llm_icbs" + "_quick" * args.quick
    done: list[dict[str, Any]] = earlier(stem) if args.part else []
    for part, setting in ((digits, "digits MLP"), (stories, "stories260K")):
        if args.part in (None, part.__name__):
            done = [r for r in done if r["setting"] != setting]
            for row in part(args.quick):  # written row by row: a stopped run leaves what it has
                done.append(row)
                write(stem, done)
