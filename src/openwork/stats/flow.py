"""Synaptic flow: the gradient of the summed output when every weight is positive and the input is all ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from openwork.core.batches import forward, logits_of
from openwork.core.measuring import Measuring, weights_of
from openwork.core.stat import Stat
from openwork.errors import DivergedError, MissingStatistic, RecipeError
from openwork.stats.gradients import grads_of

_REFUSED = ("softmax", "attention", "layer_norm", "group_norm", "instance_norm", "rms_norm")


class _Homogeneous(TorchFunctionMode):
    """Refuses what makes the output of positive weights something other than a sum over paths.

    A softmax, and a norm by the values that run through it, divide the scale of the weights before them out again: some
    of those weights lower the output.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if any(word in name for word in _REFUSED):
            raise RecipeError(
                f"SynapticFlow: the network runs {name}, through which no flow is conserved; let it return logits, and "
                "for transformers and norms other than a batch norm take magnitude, snip or taylor"
            )
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class SynapticFlow(Stat):
    """``dR/d|w|`` at masked absolute weights, ``R`` the sum of all outputs for an input of ones (float64, eval mode).

    Parameters and buffers are replaced by their absolute values in a functional call, so nothing is written into the
    model and signs need no undoing. The input shape comes from ``input_shape`` (without the batch dimension) or from
    the first batch of ``data``, whose values are not used.

    Raises:
        RecipeError: the network runs a softmax, attention or a norm other than a batch norm, through which no flow is
            conserved.
        MissingStatistic: no input shape, or inputs that are no real numbers.
        DivergedError: the flow overflows float64.
    """

    needs_data: ClassVar[bool] = False
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(self.input_shape))

    def measure(self, ctx: Measuring) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        shape = self._shape(ctx)
        was = {n: p.detach() for n, p in ctx.model.named_parameters()}
        still = {n: b.detach() for n, b in ctx.model.named_buffers()}
        fixed = {n: t.double().abs() if t.is_floating_point() else t for n, t in {**was, **still}.items()}
        ones = torch.ones(1, *shape, dtype=torch.float64, device=next(iter(was.values())).device)

        def flow(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
            leaves = {n: (w.double().abs() * masks.get(n, 1)).requires_grad_() for n, w in weights_of(ctx).items()}
            with ctx.calling("eval") as call, _Homogeneous():
                total = logits_of(forward(lambda *a, **k: call({**fixed, **leaves}, *a, **k), ones)).sum()
            if not bool(torch.isfinite(total)):
                raise DivergedError(
                    "SynapticFlow: the flow overflows float64; scale the weights down or prune fewer layers"
                )
            return dict(zip(leaves, grads_of(total, leaves), strict=True))

        return flow

    def _shape(self, ctx: Measuring) -> tuple[int, ...]:
        if self.input_shape is not None:
            return self.input_shape
        if ctx.feed.data is None:
            raise MissingStatistic("SynapticFlow needs to know the input shape; pass input_shape=(1, 28, 28) or data=")
        batch = ctx.feed.next()
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise MissingStatistic(
                f"SynapticFlow sends ones through the network, so it needs real-valued inputs, got {found}; pass "
                "input_shape= if the model takes a real-valued tensor, and for token ids take magnitude, snip or taylor"
            )
        return tuple(x.shape[1:])
