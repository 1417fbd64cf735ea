"""PreCropping against masks with the same layer densities and against one width for all layers, from scratch.

    python bench/precrop.py [--quick | --digits]

Without --digits Fashion-MNIST must be on the machine.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from common import interleaved, ratio, spread, write
from torch import nn
from torch.nn import functional as F
from training import accuracy, fit, pruned

import openwork as ow
from openwork.allocation.crop import equal_numbers
from openwork.data import load_data
from openwork.lab.controls import small_dense
from openwork.methods import precrop


def scattered(model: nn.Module, share: float, seed: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Random single weights stay, so many in each layer that all layers keep the same number; the norms are whole."""
    made = copy.deepcopy(model)
    weights = {n: p for n, p in made.named_parameters() if p.ndim > 1}
    rest = sum(p.numel() for p in made.parameters()) - sum(p.numel() for p in weights.values())
    total = share * (rest + sum(p.numel() for p in weights.values())) - rest
    density = equal_numbers(
        {n: p.numel() for n, p in weights.items()}, total / sum(p.numel() for p in weights.values())
    )
    rng, masks = torch.Generator().manual_seed(seed), {}
    for name, weight in weights.items():
        keep = torch.randperm(weight.numel(), generator=rng) < round(density[name] * weight.numel())
        masks[name] = keep.view(weight.shape)
        with torch.no_grad():
            weight.masked_fill_(~masks[name], 0.0).mul_(density[name] ** -0.5)
    return made, masks


def main(quick: bool, digits: bool) -> None:
    torch.set_num_threads(1)
    data = load_data("digits" if quick or digits else "fashion-mnist")
    x, y, epochs = data.x_train[:10_000], data.y_train[:10_000], 1 if quick else 15 if digits else 3
    data = replace(data, x_test=data.x_test[:5000], y_test=data.y_test[:5000])
    options: dict[str, Any] = {} if quick or digits else {"stem_stride": 2}
    found: dict[tuple[float, str], list[float]] = {}
    sizes: dict[tuple[float, str], int] = {}
    speed: dict[str, Any] = {}
    for share in (0.15,):
        for seed in range(1 if quick else 3):
            torch.manual_seed(seed)
            model = ow.build_model("resnet8", data.input_shape, 10, **options)
            structure = ow.channels(example=x[:2])
            made: dict[str, nn.Module] = {}
            for name, source in (("precrop, closed form", "closed_form"), ("precrop, synflow", "synflow")):
                rounds = {"rounds": 20} if source == "synflow" else {}
                recipe = precrop(structure=structure, source=source, **rounds)
                small, result = pruned(model, recipe, target={"params": share}, seed=seed)
                made[name] = ow.compact(small, result)
            wanted = sum(p.numel() for p in made["precrop, closed form"].parameters())
            narrow = small_dense("resnet8", options, data.input_shape, 10, wanted)
            assert not isinstance(narrow, str)
            torch.manual_seed(seed)
            made["one width for all layers"] = ow.build_model("resnet8", data.input_shape, 10, **narrow[0])
            masked, masks = scattered(model, share, seed)
            made["random masks, same densities"] = masked
            for name, net in made.items():
                if name.startswith("random masks"):
                    with ow.hold(net, masks):
                        fit(net, x, y, epochs, seed)
                    gone = sum(int((~m).sum()) for m in masks.values())
                    sizes[share, name] = sum(p.numel() for p in net.parameters()) - gone
                else:
                    fit(net, x, y, epochs, seed)
                    sizes[share, name] = sum(p.numel() for p in net.parameters())
                found.setdefault((share, name), []).append(accuracy(net, data))
            if seed == 0:
                speed[f"{share}"] = _steps(made["precrop, closed form"], masked, x[:128], y[:128], 3 if quick else 15)
    rows = []
    for (share, name), values in found.items():
        size = sizes[share, name]
        rows.append({"share": share, "method": name, "accuracy": spread(values), "params": size})
        print(
            f"{share:5g} {name:32} {size:7} {100 * rows[-1]['accuracy']['mean']:6.2f} {values}",
            flush=True,
        )
    write(
        "precrop_quick" if quick else "precrop",
        rows,
        title="PreCropping, trained from scratch",
        command="python bench/precrop.py" + " --digits" * digits,
        columns={"parameters": "share:g", "method": "method", "exactly": "params:,", "accuracy": "accuracy:spread"},
        note=f"ResNet-8 on {len(x):,} pictures of {data.name}, {epochs} epochs, 3 seeds; the share is that of "
        "the parameters.",
        step_time=speed,
    )


def _steps(cropped: nn.Module, masked: nn.Module, x: torch.Tensor, y: torch.Tensor, rounds: int) -> dict[str, float]:
    """CPU time of a training step, cropped over masked, in turn."""

    def step(net: nn.Module) -> None:
        net.train()
        F.cross_entropy(net(x), y).backward()
        net.zero_grad()

    began = time.process_time()
    times = interleaved({"cropped": lambda: step(cropped), "masked": lambda: step(masked)}, rounds)
    return {**ratio(times, "cropped", "masked"), "cpu_seconds": round(time.process_time() - began, 2)}


if __name__ == "__main__":
    main("--quick" in sys.argv, "--digits" in sys.argv)
