"""Effective sparsity: kept weights that no path joins to an input and to an output count as pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from openwork.core.batches import device_of, logits_of
from openwork.errors import MissingStatistic, VerificationFailed
from openwork.graph.example import Example

SAME = {
    "relu", "relu6", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "hardswish", "hardtanh", "tanh",
    "softplus", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
}  # fmt: skip
"""Functions that join an entry to itself and to nothing else."""
OPEN = {"sigmoid", "hardsigmoid", "softmax", "log_softmax", "softmin"}
"""Functions that let something through whatever comes in."""
CHANNELS = {"batch_norm": 3, "instance_norm": 3, "group_norm": 2}
"""Norms over channels: where their weight stands among the arguments."""
PRODUCTS = {
    "linear", "bilinear", "matmul", "mm", "bmm", "addmm", "einsum", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip


class _Reached(torch.autograd.Function):
    """1 where something arrives, forwards and backwards, so that no path is lost to rounding in deep networks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return (grads[0] > 0).to(grads[0].dtype)


def _reached(x: Tensor) -> Tensor:
    reached: Tensor = _Reached.apply(x)
    return reached


class _Paths(TorchFunctionMode):
    """Every operation as the set of its connections: sums and products of numbers that are not negative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(getattr(func, "__name__", "")).rstrip("_")
        x = args[0] if args else kwargs.get("input")
        if name in SAME:
            return x
        if name in OPEN:
            return x + 1
        if name in CHANNELS or name in ("layer_norm", "rms_norm"):
            weight = kwargs.get("weight", args[CHANNELS.get(name, 2)] if len(args) > CHANNELS.get(name, 2) else None)
            if weight is None:
                return x
            return x * (weight.view(-1, *[1] * (x.ndim - 2)) if name in CHANNELS else weight)
        if name == "scaled_dot_product_attention":
            q, k, v = args[:3]
            mixed = v.mean(-2, keepdim=True) * (1 + k.mean((-2, -1), keepdim=True)) * (1 + q.mean(-1, keepdim=True))
            return _reached(mixed)
        if "max_pool" in name:
            return _pooled(func, name, args, kwargs)
        out = func(*args, **kwargs)
        return _reached(out) if name in PRODUCTS and isinstance(out, Tensor) and out.is_floating_point() else out


def _pooled(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The mean in the place of the maximum, whose gradient would follow one of many equal entries."""
    dilation = kwargs.pop("dilation", args[4] if len(args) > 4 else 1)
    if dilation not in (1, (1,), (1, 1), (1, 1, 1)) or kwargs.pop("return_indices", False):
        raise MissingStatistic(f"effective_masks: {func.__name__} with dilation or indices is not followed")
    mean = getattr(nn.functional, name.removesuffix("_with_indices").replace("max", "avg"))
    return mean(*args[:4], **kwargs)


def effective_masks(model: nn.Module, masks: Mapping[str, Tensor], example: Any) -> dict[str, Tensor]:
    """The masks without what is cut off: an entry stays where a path of kept weights joins an input to an output.

    ``1 - effective / all`` is the effective sparsity, never below the sparsity of the masks. A bias is no input: a unit
    that only its bias feeds is cut off. Masks of biases and of scales of norms are followed and returned as they are.
    One forward and one backward pass of one example, whose values do not matter.

    Args:
        model: convolutions, linear layers, norms, attention through torch's functions, elementwise activations.
        masks: parameter name -> bool, True = kept; parameters without a mask are whole.
        example: one input, a tensor of real numbers, a tuple of them, or an ``Example``.

    Returns:
        Parameter name -> bool mask of the same shape.

    Raises:
        VerificationFailed: masks of another model.
        MissingStatistic: inputs that are no real numbers, or a model in which even the paths of the dense network
            are not found.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> first, second = torch.tensor([[True, False], [False, False]]), torch.tensor([[False, True]])
        >>> found = effective_masks(net, {"0.weight": first, "2.weight": second}, torch.ones(1, 2))
        >>> [int(m.sum()) for m in found.values()]
        [0, 0]

    References:
        Vysogorets and Kempe. Connectivity Matters: Neural Network Pruning Through the Lens of Effective Sparsity.
        JMLR 2023, arXiv 2107.02306.
    """
    params = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in params or params[name].shape != mask.shape or mask.dtype != torch.bool:
            raise VerificationFailed(
                f"effective_masks: {name} has no bool mask of its shape, but {mask.dtype} {tuple(mask.shape)}; give "
                "the masks of this model"
            )
    args, named = Example.of(example).tensors(device_of(model))
    inputs = [torch.ones_like(v) if isinstance(v, Tensor) else v for v in (*args, *named.values())]
    if not all(v.is_floating_point() for v in inputs if isinstance(v, Tensor)):
        raise MissingStatistic("effective_masks: the paths of token ids are not followed; give real-valued inputs")
    call = (tuple(inputs[: len(args)]), dict(zip(named, inputs[len(args) :], strict=True)))
    wide = {n: m for n, m in masks.items() if m.ndim > 1}
    whole = _followed(model, {}, wide, call)
    lost = [n for n, m in whole.items() if not bool(m.any())]
    if lost:
        raise MissingStatistic(
            f"effective_masks: {lost[0]} lies on no path even without a mask; the operations of "
            f"{type(model).__name__} are not followed"
        )
    return {**masks, **_followed(model, masks, wide, call)}


def _followed(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    call: tuple[tuple[Any, ...], dict[str, Any]],
) -> dict[str, Tensor]:
    """Which entries of ``wanted`` lie on a path under ``masks``."""
    values = {n: _connections(n, p, masks.get(n)) for n, p in model.named_parameters()}
    leaves = {n: values[n].requires_grad_() for n in wanted}
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), _Paths():
            out = logits_of(functional_call(model, values, *call))
        grads = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
    except RuntimeError as problem:
        raise MissingStatistic(
            f"effective_masks: {type(model).__name__} cannot be followed ({str(problem).splitlines()[0]})"
        ) from None
    finally:
        for module, training in was:
            module.training = training
    found = {n: torch.zeros_like(wanted[n]) if g is None else g > 0 for n, g in zip(leaves, grads, strict=True)}
    return {n: m & masks[n].to(m.device) if n in masks else m for n, m in found.items()}


def _connections(name: str, param: Tensor, mask: Tensor | None) -> Tensor:
    """1 where a parameter joins two entries; what is only added, as biases and positions are, joins nothing."""
    last = name.rsplit(".", 1)[-1]
    joins = last.endswith("weight") or (param.ndim < 2 and not last.endswith("bias"))
    made = torch.full_like(param, float(joins), dtype=torch.float32, requires_grad=False)
    return made if mask is None else made * mask.to(made.device)
