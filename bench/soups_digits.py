"""Sparse model soups against iterative magnitude pruning: digits, MLP 64-128-128-10 with BatchNorm, three rounds.

Each round prunes by global magnitude and retrains for ``EPOCHS`` epochs, at one copy (IMP), one copy for three times as
long, or three copies with different seeds that are averaged. The control averages three networks that were pruned apart
from each other. Accuracies on the test digits, five seeds. ``--quick``: one seed, one density.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from common import spread, write
from torch import Tensor, nn
from torch.nn import functional as F

import openwork as ow
from openwork.methods import imp
from openwork.recovery import Soup, SoupReport

EPOCHS, COPIES, ROUNDS = 5, 3, 3


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (64, 128):
        layers += [nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def trainer(x: Tensor, y: Tensor, epochs: int, lr: float) -> Callable[[nn.Module, int], None]:
    """SGD with momentum and a linear fall of the rate; the seed gives the order of the samples and their noise."""

    def train(model: nn.Module, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        model.train()
        steps = epochs * (len(x) // 64)
        for step in range(steps):
            at = torch.randint(0, len(x), (64,), generator=rng)
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad()
            F.cross_entropy(model(x[at] + 0.1 * torch.randn(x[at].shape, generator=rng)), y[at]).backward()
            optimizer.step()
        model.eval()

    return train


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    return float((model(x).argmax(1) == y).double().mean())


def run(dense: nn.Module, density: float, soup: Soup, epochs: int, data: Any) -> tuple[nn.Module, list[SoupReport]]:
    """All rounds; the reports of the merges."""
    x, y, test = data
    model, reports = copy.deepcopy(dense), []
    rounds = ow.Cycle(model, imp(density, rounds=ROUNDS, rewind="none", scope="global"))
    batches = list(zip(x.split(64), y.split(64), strict=True))
    while not rounds.finished:
        rounds.prune_round()
        reports.append(
            soup(model, rounds.masks, trainer(x, y, epochs, 0.05), evaluate=lambda m: accuracy(m, *test),
                 recalibration=batches, batches=len(batches))
        )  # fmt: skip
    rounds.finish()
    return model, reports


def without_recalibration(model: nn.Module, dense: nn.Module) -> nn.Module:
    """The same weights with the statistics of the dense network."""
    old = copy.deepcopy(model)
    state = {n: v for n, v in dense.state_dict().items() if "running" in n}
    old.load_state_dict({**old.state_dict(), **state})
    return old


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    digits = ow.load_data("digits")
    data = digits.x_train, digits.y_train, (digits.x_test, digits.y_test)
    rows = []
    for density in (0.05,) if quick else (0.05, 0.02):
        found: dict[str, list[float]] = {}
        above_mean = above_best = merges = 0
        support: list[float] = []
        for seed in range(1 if quick else 5):
            dense = network(seed)
            trainer(*data[:2], 15, 0.1)(dense, seed)
            single, _ = run(dense, density, Soup(1, seed=100 * seed), EPOCHS, data)
            longer, _ = run(dense, density, Soup(1, seed=100 * seed), COPIES * EPOCHS, data)
            soup, reports = run(dense, density, Soup(COPIES, seed=100 * seed), EPOCHS, data)
            greedy, _ = run(dense, density, Soup(COPIES, "greedy", 100 * seed), EPOCHS, data)
            for report in reports:
                assert report.score is not None
                above_mean += report.score >= sum(report.scores) / COPIES
                above_best += report.score >= max(report.scores)
                merges += 1
            apart = [run(dense, density, Soup(1, seed=100 * seed + 10 * i), EPOCHS, data)[0] for i in range(COPIES)]
            mixed = copy.deepcopy(apart[0])
            with torch.no_grad():
                for name, param in mixed.named_parameters():
                    param.copy_(torch.stack([m.get_parameter(name) for m in apart]).mean(0))
            ow.recalibrate(mixed, list(zip(data[0].split(64), data[1].split(64), strict=True)), 22)
            matrices = [p for p in mixed.parameters() if p.ndim > 1]
            support.append(sum(int((p != 0).sum()) for p in matrices) / sum(p.numel() for p in matrices))
            models = {
                "IMP": single, f"IMP, {COPIES} times as long": longer, "soup": soup, "greedy soup (on the test digits)":
                greedy, "soup, old BatchNorm statistics": without_recalibration(soup, dense),
                "average of three IMP runs": mixed,
            }  # fmt: skip
            for name, model in models.items():
                found.setdefault(name, []).append(accuracy(model, *data[2]))
        for name, values in found.items():
            own = {"support": spread(support)} if name.startswith("average") else {}
            counts = {"merges": merges, "no_worse_than_mean": above_mean, "no_worse_than_best": above_best}
            rows.append({"density": density, "method": name, "accuracy": spread(values), "after": spread(values), **own,
                         **(counts if name == "soup" else {})})  # fmt: skip
            print(f"{density} {name:36} {100 * rows[-1]['accuracy']['mean']:.2f} {own} "
                  f"{counts if name == 'soup' else ''}", flush=True)  # fmt: skip
    write("soups_digits_quick" if quick else "soups_digits", rows, copies=COPIES, rounds=ROUNDS, epochs=EPOCHS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
