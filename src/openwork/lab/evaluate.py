"""Accuracy, loss and calibration on a test set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.core.batches import device_of
from openwork.core.distributed import rank, summed, world
from openwork.data.sources import Source, TensorSource
from openwork.lab.precision import computing_in

BINS = 15  # of the confidence, as in most papers on calibration
TOP, MANY = 5, 10  # of more than so many classes the five likeliest count too


def logits_of(output: Any) -> Tensor:
    """Plain models return logits, transformers' models an object that holds them."""
    return output if isinstance(output, Tensor) else output.logits


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """The loss of every classification job."""
    return F.cross_entropy(logits_of(output), target)


def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1000) -> dict[str, float]:
    """``{"accuracy": share in [0, 1], "loss": mean cross-entropy, "ece": ...}`` in eval mode; the mode is put back.

    Of more than ten classes also ``"top5"``, the share whose class is among the five likeliest.
    """
    return evaluate_source(model, TensorSource(x, y), batch_size)


@torch.no_grad()
def evaluate_source(
    model: nn.Module, source: Source, batch_size: int | None = None, precision: str = "float32"
) -> dict[str, float]:
    """The same of a source, in batches of its ``chunk``; for two classes the loss is the log loss of click data.

    ``ece`` is the expected calibration error, ``sum_b n_b / n |accuracy_b - confidence_b|`` over 15 equal bins of the
    confidence, the probability of the answer; the loss is the negative log-likelihood. ``top5`` is there for more than
    ten classes: among equal logits, and where some are not finite, the answer is as torch's ``topk`` orders them.

    A sample that a source leaves out, as a picture that does not decode, counts neither as right nor as wrong. Several
    processes share the batches.

    Args:
        model: takes x float32 ``[n, *shape]``, gives logits ``[n, classes]``.
        source: the test side of a data set.
        batch_size: samples a batch; None takes ``source.chunk``.
        precision: of the forward pass, see ``openwork.lab.precision``.
    """
    size = batch_size or source.chunk
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    device, forward = device_of(model), computing_in(precision, model)
    total, bins = 0.0, torch.zeros(3, BINS, dtype=torch.float64, device=device)
    top = torch.zeros(2, dtype=torch.float64, device=device)  # right among the five, and samples it was asked of
    try:
        for i in range(rank() * size, len(source), world() * size):
            x, target = source.read(slice(i, min(i + size, len(source))))
            target = target.to(device)
            logits = logits_of(forward(x.to(device)))
            bins += _binned(logits, target)
            if logits.shape[1] > MANY:
                found = (logits.topk(TOP, 1).indices == target[:, None]).any(1)
                top += torch.stack([found.sum(), target.new_tensor(len(target))])
            total += float(F.cross_entropy(logits, target, reduction="sum"))
    finally:
        for module, training in was:
            module.training = training
    sums = torch.tensor([total], dtype=torch.float64, device=device)
    summed([sums, bins, top])
    count, right, sure = bins.tolist()
    n = sum(count)
    return {
        "accuracy": sum(right) / n,
        "loss": float(sums) / n,
        "ece": sum(abs(r - s) for r, s in zip(right, sure, strict=True)) / n,
        **({"top5": float(top[0] / top[1])} if top[1] else {}),
    }


def _binned(logits: Tensor, target: Tensor) -> Tensor:
    """``[3, BINS]``: samples, right answers and summed confidence in each bin."""
    answer = logits.argmax(1)
    sure = logits.double().softmax(1).gather(1, answer[:, None])[:, 0].nan_to_num(0.0)
    at = (sure * BINS).ceil().long().sub(1).clamp(0, BINS - 1)  # bins are open below and closed above
    rows = torch.stack([torch.ones_like(sure), (answer == target).double(), sure])
    return torch.zeros(3, BINS, dtype=torch.float64, device=logits.device).index_add_(1, at, rows)
