"""A plain training loop and two accuracies, shared by the benches that train small networks in many ways."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import openwork as ow
from openwork.data import DataSet


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: float,
    seed: int,
    lr: float = 0.1,
    batch: int = 128,
    attach: Callable[[torch.optim.Optimizer], Any] | None = None,
    adam: bool = False,
) -> Any:
    """SGD with Nesterov momentum (or AdamW) on a cosine; returns what ``attach`` returned (a run to be finished)."""
    optimizer: torch.optim.Optimizer
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    run = attach(optimizer) if attach else None
    rng = torch.Generator().manual_seed(seed)
    steps, done = max(1, round(epochs * len(x) / batch)), 0
    torch.manual_seed(seed)
    model.train()
    while done < steps:
        for at in torch.randperm(len(x), generator=rng).split(batch):
            if done == steps or len(at) < 2:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * min((done + 1) / (0.05 * steps + 1), 0.5 + 0.5 * math.cos(math.pi * done / steps))
            optimizer.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
            done += 1
    model.eval()
    return run


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """The class of every sample, in eval mode."""
    model.eval()
    return torch.cat([model(part).argmax(1) for part in x.split(batch)])


def accuracy(model: nn.Module, data: DataSet) -> float:
    """Share of right answers on the test samples."""
    return float((answers(model, data.x_test) == data.y_test).double().mean())


def balanced(model: nn.Module, data: DataSet) -> float:
    """The mean over classes of the share of right answers."""
    right = answers(model, data.x_test) == data.y_test
    return float(torch.stack([right[data.y_test == c].double().mean() for c in data.y_test.unique()]).mean())


def pruned(model: nn.Module, recipe: ow.Recipe, data: Any = None, **options: Any) -> tuple[nn.Module, ow.Result]:
    """A pruned copy and its result."""
    twin = copy.deepcopy(model)
    return twin, ow.prune(twin, recipe, data=data, loss=F.cross_entropy, **options)
