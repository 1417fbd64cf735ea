"""Accuracy and loss on a test set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def logits_of(output: Any) -> Tensor:
    """Plain models return logits, transformers' models an object that holds them."""
    return output if isinstance(output, Tensor) else output.logits


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """The loss of every classification job."""
    return F.cross_entropy(logits_of(output), target)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1000) -> dict[str, float]:
    """``{"accuracy": share in [0, 1], "loss": mean cross-entropy}`` in eval mode; the mode is put back."""
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    right, total = 0, 0.0
    try:
        for i in range(0, len(x), batch_size):
            logits = logits_of(model(x[i : i + batch_size]))
            target = y[i : i + batch_size]
            right += int((logits.argmax(1) == target).sum())
            total += float(F.cross_entropy(logits, target, reduction="sum"))
    finally:
        for module, training in was:
            module.training = training
    return {"accuracy": right / len(x), "loss": total / len(x)}
