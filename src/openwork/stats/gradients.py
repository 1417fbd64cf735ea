"""First- and second-order gradients of the loss at masked weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from openwork.core.batches import Loss, logits_of, loss_on
from openwork.core.distributed import averaged
from openwork.core.measuring import Measuring, Mode, seeded, weights_of
from openwork.core.stat import Stat
from openwork.errors import DataError, DivergedError, MissingStatistic, RecipeError
from openwork.stats.sharded_gradients import each_sharded_gradient

Gradient = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_Tensors = Mapping[str, Tensor]
_Run = Callable[[int, Any], Tensor]

_ONLY_ONCE = ("is not implemented", "double backward")
"""What PyTorch says of an operation, and of a compiled function, that has no second derivative."""


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fresh leaves ``w * mask`` that require gradients."""
    return {n: (w * masks[n] if n in masks else w.clone()).requires_grad_() for n, w in weights.items()}


def each_gradient(
    ctx: Measuring,
    masks: Mapping[str, Tensor],
    seen: Sequence[Any],
    mode: Mode,
    see: Callable[[dict[str, Tensor], dict[str, Tensor]], None],
) -> None:
    """Show the masked weights and ``dL/dw`` there to ``see``, batch by batch; the mean over the ranks.

    Where weights are sharded, both are the pieces of this rank. One gradient is in memory at a time.
    """
    if ctx.sharded:
        each_sharded_gradient(ctx, masks, seen, mode, see)
        return
    leaves = masked(weights_of(ctx), masks)
    with ctx.calling(mode) as call, seeded(ctx.seed):
        for i, batch in enumerate(seen):
            loss = loss_on(lambda *a, **k: call(leaves, *a, **k), batch, ctx.loss, step=i)
            grads = grads_of(loss, leaves)
            averaged(grads)
            with torch.no_grad():
                see(leaves, dict(zip(leaves, grads, strict=True)))


@dataclass(frozen=True)
class LossGradient(Stat):
    """``dL/dw`` at masked weights, summed over ``batches`` batches; the value is a function of the masks.

    ``absolute=True`` sums ``|dL/dw|`` batch by batch instead, which cannot cancel. The batches are drawn once, so
    every call sees the same ones. ``mode`` is the train/eval mode of the network while it is measured.
    """

    needs_loss: ClassVar[bool] = True
    sharded: ClassVar[bool] = True
    batches: int = 1
    absolute: bool = False
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise RecipeError(f"LossGradient: batches must be at least 1, got {self.batches}")

    def measure(self, ctx: Measuring) -> Gradient:
        seen = [ctx.feed.next(f"{self.batches} scoring batches") for _ in range(self.batches)]

        def gradient(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
            total = {n: torch.zeros_like(w) for n, w in weights_of(ctx).items()}

            def see(_: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
                for n, g in grads.items():
                    total[n] += g.abs() if self.absolute else g

            each_gradient(ctx, masks, seen, self.mode, see)
            return total

        return gradient


@dataclass(frozen=True)
class GradientFlow(Stat):
    """``(g, H g)`` for GraSP: the gradient and its product with the Hessian, by double backward.

    Where an operation has no second derivative, ``H g = (grad(w + e g) - grad(w - e g)) / 2 e`` with
    ``e = eps^(1/3) |w| / |g|``, eps the rounding of the weights' dtype. A gradient of less than a thousandth of the one
    that the same outputs have against each other's targets is warned of: the samples are fitted already, and the scores
    are noise. No scale of the loss, the weights or the temperature moves this ratio; before training it is about 1.

    The loss sees ``logits / temperature``. Each batch is cut in two halves, as in the paper's code; every pass sees
    the same samples. Dropout is off (``eval`` mode) unless ``mode`` says otherwise; then it drops the same in every
    pass. Attention runs in plain operations, since fused kernels have no second derivative.
    """

    needs_loss: ClassVar[bool] = True
    batches: int = 1
    temperature: float = 200.0
    mode: Literal["train", "eval"] = "eval"

    def __post_init__(self) -> None:
        if self.batches < 1 or not self.temperature > 0:
            raise RecipeError(
                f"GradientFlow: batches must be >= 1 and temperature > 0, got {self.batches} and {self.temperature}"
            )

    def measure(self, ctx: Measuring) -> Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]:
        seen = [half for _ in range(self.batches) for half in _halves(ctx.feed.next(f"{self.batches} scoring batches"))]
        if ctx.loss is None:
            raise MissingStatistic(
                "GradientFlow scales logits, so it needs loss=, for instance F.cross_entropy; of batches that are "
                "mappings it is called as loss(logits, batch)"
            )
        user_loss = ctx.loss

        def cooled(output: Any, target: Any) -> Tensor:
            return user_loss(logits_of(output) / self.temperature, target)

        def astray(output: Any, target: Any) -> Tensor:
            logits = logits_of(output)
            return user_loss((logits.flip(0) if logits.dim() else logits) / self.temperature, target)

        def flow(masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            leaves = masked(weights_of(ctx), masks)
            with ctx.calling(self.mode) as call, sdpa_kernel(SDPBackend.MATH):

                def run(i: int, batch: Any, loss: Loss = cooled) -> Tensor:
                    with seeded(ctx.seed + i):
                        return loss_on(lambda *a, **k: call(leaves, *a, **k), batch, loss, step=i)

                g = _summed(leaves, run, seen)
                averaged(g.values())
                _warn_flat(g, leaves, lambda i, batch: run(i, batch, astray), seen)
                try:
                    hg = _by_double_backward(g, leaves, run, seen)
                except RuntimeError as problem:
                    if not any(word in str(problem) for word in _ONLY_ONCE):
                        raise
                    hg = None
                hg = hg if hg is not None else _by_differences(g, leaves, run, seen)
                averaged(hg.values())
            return g, hg

        return flow


def _summed(leaves: _Tensors, run: _Run, seen: Sequence[Any]) -> dict[str, Tensor]:
    total = {n: torch.zeros_like(w) for n, w in leaves.items()}
    for i, batch in enumerate(seen):
        for n, d in zip(leaves, grads_of(run(i, batch), leaves), strict=True):
            total[n] += d
    return total


def _by_double_backward(g: _Tensors, leaves: _Tensors, run: _Run, seen: Sequence[Any]) -> dict[str, Tensor] | None:
    """None where a function can be differentiated only once."""
    hg = {n: torch.zeros_like(w) for n, w in leaves.items()}
    for i, batch in enumerate(seen):
        grads = grads_of(run(i, batch), leaves, graph=True)
        z = sum(((g[n] * d).sum() for n, d in zip(leaves, grads, strict=True)), torch.zeros(()))
        if z.requires_grad:  # else the loss is linear in the weights and H is zero
            if _holds_delayed_errors(z):
                return None
            for n, h in zip(leaves, grads_of(z, leaves), strict=True):
                hg[n] += h
    return hg


def _holds_delayed_errors(value: Tensor) -> bool:
    """Whether a function marked with ``once_differentiable`` stands in this graph.

    PyTorch leaves an error there that has no way on to the weights, so that ``torch.autograd.grad`` passes it by
    without a word and what flows through it is missing.
    """
    seen: set[Any] = set()
    todo = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node.name().endswith("Error"):
                return True
            todo.extend(n for n, _ in node.next_functions)
    return False


def _by_differences(g: _Tensors, leaves: _Tensors, run: _Run, seen: Sequence[Any]) -> dict[str, Tensor]:
    """Central differences of the gradient along ``g``, in place and undone: ``run`` reads these very leaves."""
    hg = {n: torch.zeros_like(w) for n, w in leaves.items()}
    if _norm(g) == 0:
        return hg
    step = torch.finfo(next(iter(leaves.values())).dtype).eps ** (1 / 3) * max(_norm(leaves), 1e-12) / _norm(g)
    was = {n: w.detach().clone() for n, w in leaves.items()}
    for sign in (1, -1):
        with torch.no_grad():
            for n, w in leaves.items():
                w.copy_(was[n] + sign * step * g[n])
        for n, d in _summed(leaves, run, seen).items():
            hg[n] += sign * d / (2 * step)
    return hg


def _norm(tensors: _Tensors) -> float:
    return float(sum(float(t.detach().double().square().sum()) for t in tensors.values()) ** 0.5)


def _warn_flat(g: _Tensors, leaves: _Tensors, wrong: _Run, seen: Sequence[Any]) -> None:
    try:
        against = _summed(leaves, wrong, seen)
    except DivergedError:  # a loss that is infinite at a wrong target gives no measure
        against = {n: torch.full_like(w, torch.nan) for n, w in leaves.items()}
    averaged(against.values())
    share = _norm(g) / max(_norm(against), 1e-300)
    if share < 1e-3:
        warnings.warn(
            f"GradientFlow: the gradient is next to nothing, {share:.1g} of that against other targets, so the scores "
            "are noise; prune before training, or with other batches or a higher temperature",
            stacklevel=2,
        )


def grads_of(value: Tensor, leaves: Mapping[str, Tensor], graph: bool = False) -> list[Tensor]:
    """One gradient per leaf, zeros where the value does not depend on it."""
    if not value.requires_grad:
        raise DataError("the loss does not depend on the weights: it is detached or was computed without gradients")
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=graph, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, leaves.values(), strict=True)]


def _halves(batch: Any) -> list[Any]:
    if not isinstance(batch, tuple | list) or not isinstance(batch[0], Tensor) or len(batch[0]) < 2:
        return [batch]
    at = len(batch[0]) // 2
    return [tuple(t[half] if isinstance(t, Tensor) else t for t in batch) for half in (slice(at), slice(at, None))]
