"""PERP: recover with few parameters: biases, norms, and low-rank adapters under the mask (Zimmer et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from openwork.core.batches import Loss, device_of, loss_on, to_device
from openwork.core.measuring import seeded
from openwork.engine.write import write_edits, write_masks
from openwork.errors import DivergedError, RecipeError

Kind = Literal["mask_lora", "scale_lora", "lora_prune", "none"]


@dataclass(frozen=True)
class Perp:
    """What is trained, and how.

    Adapters on every pruned matrix (view of ``[out, in]``, per expert): ``mask_lora`` W + c M * (B A), ``lora_prune``
    W + c B A in training and the masked product afterwards, ``scale_lora`` W * (B A) starting at one; c = alpha / rank.
    The masks are those of pruning, not ``W != 0``. AdamW without weight decay, linear warm-up over a tenth of the steps
    and linear decay. Trained values are float32.

    As ``recovery=`` of ``prune_blockwise`` it reconstructs each block: the pruned block learns to give what the dense
    one gave, on the inputs that the pruned ones before it produce.
    """

    biases: bool = True
    norms: bool = True
    adapter: Kind = "mask_lora"
    rank: int = 16
    alpha: float = 32.0
    epochs: int = 3
    lr: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.adapter not in ("mask_lora", "scale_lora", "lora_prune", "none"):
            raise RecipeError(f"Perp: adapter must be mask_lora, scale_lora, lora_prune or none, got {self.adapter!r}")
        if self.rank < 1 or self.epochs < 1 or not self.lr > 0:
            raise RecipeError(f"Perp: rank, epochs and lr must be positive, got {self.rank}, {self.epochs}, {self.lr}")

    def __call__(
        self, block: nn.Module, masks: Mapping[str, Tensor], data: Iterable[Mapping[str, Any]], targets: list[Tensor]
    ) -> dict[str, Any]:
        """Reconstruct one block in place; zeros stay zeros.

        Raises:
            RecipeError: nothing to train.
            DivergedError: the reconstruction error is not finite.
        """
        device = device_of(block)

        def losses() -> Iterator[Callable[[Callable[..., Any]], Tensor]]:
            for batch, target in zip(data, targets, strict=True):
                moved = to_device(batch, device)
                yield lambda call, m=moved, t=target: F.mse_loss(call(**m).float(), t.float())  # type: ignore[misc]

        return self._train(block, masks, losses)

    def retrain(
        self, model: nn.Module, masks: Mapping[str, Tensor], data: Iterable[Any], loss: Loss | None = None
    ) -> dict[str, Any]:
        """Train the same parameters of a whole model on its task; ``data`` is read once per epoch."""
        device = device_of(model)

        def losses() -> Iterator[Callable[[Callable[..., Any]], Tensor]]:
            for batch in data:
                moved = to_device(batch, device)
                yield lambda call, m=moved: loss_on(call, m, loss)  # type: ignore[misc]

        return self._train(model, masks, losses)

    def _train(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        losses: Callable[[], Iterator[Callable[[Callable[..., Any]], Tensor]]],
    ) -> dict[str, Any]:
        named = dict(model.named_parameters())
        direct = {n: p.detach().float().clone().requires_grad_() for n, p in named.items() if self._is_direct(model, n)}
        with seeded(self.seed):
            low = {n: _Adapter(named[n].detach(), m, self) for n, m in masks.items() if self._adapts(m)}
        trained = [*direct.values(), *(p for a in low.values() for p in (a.down, a.up))]
        if not trained:
            raise RecipeError("Perp: nothing to train: no biases, no norms and no adapter; switch one of them on")
        steps = self.epochs * sum(1 for _ in losses())
        if not steps:
            raise RecipeError("Perp: the data is empty, nothing can be learned from it")
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        warm = max(1, steps // 10)
        first = last = float("nan")
        count = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = {n: v.to(named[n].dtype) for n, v in direct.items()}
            tensors |= {n: a.value(training=True).to(named[n].dtype) for n, a in low.items()}
            return functional_call(model, tensors, args, kwargs)

        with torch.enable_grad():
            for epoch in range(self.epochs):
                total, seen = 0.0, 0
                for compute in losses():
                    rate = min((count + 1) / warm, (steps - count) / max(1, steps - warm))
                    optimizer.param_groups[0]["lr"] = self.lr * min(1.0, rate)
                    loss = compute(call)
                    if not bool(torch.isfinite(loss)):
                        raise DivergedError(f"Perp: the loss is {float(loss.detach())} at step {count}; lower the rate")
                    optimizer.zero_grad()
                    grads = torch.autograd.grad(loss, trained, allow_unused=True)
                    for param, grad in zip(trained, grads, strict=True):
                        param.grad = grad
                    optimizer.step()
                    total, seen, count = total + float(loss.detach()), seen + 1, count + 1
                last = total / seen
                first = last if epoch == 0 else first
        edits = {n: v.detach() for n, v in direct.items()} | {
            n: a.value(training=False).detach() for n, a in low.items()
        }
        write_edits(named, {n: v.to(named[n].dtype) for n, v in edits.items()})
        write_masks(named, masks)
        number = sum(p.numel() for p in trained)
        return {"recovery": {"trained": number, "loss": [first, last], "steps": steps}}

    def _adapts(self, mask: Tensor) -> bool:
        return self.adapter != "none" and mask.ndim >= 2

    def _is_direct(self, model: nn.Module, name: str) -> bool:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        is_norm = "norm" in type(module).__name__.lower()
        return (self.norms and is_norm) or (self.biases and leaf == "bias" and not is_norm)


class _Adapter:
    """Two thin factors beside one pruned weight."""

    def __init__(self, weight: Tensor, mask: Tensor, options: Perp):
        self.weight, self.mask, self.kind = weight.float(), mask, options.adapter
        self.shape = weight.shape
        matrix = weight.reshape(*weight.shape[:1], -1) if weight.ndim != 3 else weight
        rows, columns = matrix.shape[-2:]
        stack = matrix.shape[:-2]
        rank = min(options.rank, rows, columns)
        self.scale = options.alpha / rank
        if self.kind == "scale_lora":
            self.down = torch.full((*stack, rank, columns), rank**-0.5, device=weight.device, requires_grad=True)
            self.up = torch.full((*stack, rows, rank), rank**-0.5, device=weight.device, requires_grad=True)
        else:
            bound = columns**-0.5
            drawn = torch.empty(*stack, rank, columns).uniform_(-bound, bound)
            self.down = drawn.to(weight.device).requires_grad_()
            self.up = torch.zeros(*stack, rows, rank, device=weight.device, requires_grad=True)

    def value(self, training: bool) -> Tensor:
        product = (self.up @ self.down).reshape(self.shape)
        if self.kind == "scale_lora":
            return self.weight * product
        if self.kind == "lora_prune" and training:
            return self.weight + self.scale * product
        return self.weight + self.scale * product * self.mask
