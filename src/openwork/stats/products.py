"""Every product of a forward pass that a weight takes part in, whoever computes it.

A layer's hook sees only layers; fused experts and functions of one's own multiply slices of a parameter. So the
functions are watched instead: ``linear``, ``addmm``, ``mm``, ``matmul``, ``bmm``, ``grouped_mm`` and the convolutions,
whenever one of their arguments is a watched parameter or a matrix of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from openwork.core.partition import Partition
from openwork.core.shards import is_sharded
from openwork.errors import MissingStatistic

_CONVS = (F.conv1d, F.conv2d, F.conv3d)
_REFUSED = {
    F.embedding: "Embedding",
    F.conv_transpose1d: "ConvTranspose1d",
    F.conv_transpose2d: "ConvTranspose2d",
    F.conv_transpose3d: "ConvTranspose3d",
}
_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm)
_GROUPED = tuple(f for f in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if f is not None)


@dataclass(frozen=True)
class Product:
    """One product: ``x`` meets matrix number ``index`` of parameter ``name``; ``conv`` holds a convolution's options.

    Without ``conv``, ``x`` is ``[..., in]`` and the matrix, as the parameter holds it, ``[out, in]``, or ``[in, out]``
    when it is ``transposed``.
    """

    name: str
    index: int
    x: Tensor
    conv: Mapping[str, Any] | None = None
    call: Callable[..., Tensor] | None = None
    transposed: bool = False


See = Callable[[Product], None]


class Products(TorchFunctionMode):
    """Inside ``with Products(weights, parts, see):`` every product with one of the weights is shown to ``see``.

    ``gathered``, the model, is for sharded weights: what multiplies is then what FSDP has gathered by that time.
    Tables that an Embedding looks up have no inputs; they are refused, or noted in ``lookups`` where that is given.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        parts: Iterable[Partition],
        see: See,
        gathered: nn.Module | None = None,
        lookups: set[str] | None = None,
    ):
        super().__init__()
        self._gathered = gathered
        self._lookups = lookups
        self._see = see
        self._views = {member: getattr(part, "view", None) for part in parts for member in part.members}
        self._at: dict[int, list[str]] = {}
        self._weights = weights
        for name, weight in weights.items():
            self._at.setdefault(weight.untyped_storage().data_ptr(), []).append(name)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            self._rows(*_named(args, kwargs, "input", "weight"), transposed=False)
        elif func is torch.addmm or func is Tensor.addmm:
            self._rows(*_named(args[1:], kwargs, "mat1", "mat2"), transposed=True)
        elif func in _MATMULS:
            self._rows(*_named(args, kwargs, "input", "other"), transposed=True)
        elif func in _GROUPED:
            self._sorted_rows(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs"))
        elif func in _CONVS:
            self._conv(func, args, kwargs)
        elif func in _REFUSED:
            found = self._find(_named(args, kwargs, "input", "weight")[1])
            if found is not None and func is F.embedding and self._lookups is not None:
                self._lookups.add(found[0])
            elif found is not None:
                raise MissingStatistic(
                    f"{_REFUSED[func]}: input norms are known for linear and convolution layers only; "
                    f"leave it out with Select(exclude=({found[0]!r},)), or take a method that asks for no inputs "
                    "(magnitude, taylor)"
                )
        return func(*args, **kwargs)

    def _find(self, weight: Any) -> tuple[str, int | None, Tensor] | None:
        """(name, matrix number, parameter) of what a tensor is, or is a matrix of; None: another tensor."""
        if not isinstance(weight, Tensor) or weight.is_meta or weight.device.type == "meta":
            return None
        for name, base in self._bases(weight.untyped_storage().data_ptr()):
            offset = weight.storage_offset() - base.storage_offset()
            if weight.numel() == base.numel() and offset == 0:
                return name, None, base
            if base.ndim == 3 and weight.numel() == base[0].numel() and 0 <= offset < base.numel():
                return name, offset // base[0].numel(), base
        return None

    def _bases(self, at: int) -> Iterator[tuple[str, Tensor]]:
        """The watched parameters in one piece of memory."""
        if self._gathered is None:
            yield from ((name, self._weights[name]) for name in self._at.get(at, ()))
            return
        for name in self._weights:
            param = self._gathered.get_parameter(name)
            if not is_sharded(param) and param.untyped_storage().data_ptr() == at:
                yield name, param.detach()

    def _rows(self, x: Any, weight: Any, transposed: bool) -> None:
        found = self._find(weight)
        if found is None:
            return
        name, index, base = found
        x = x.detach()
        inputs = weight.shape[-2] if transposed else weight.shape[-1]
        turned = transposed == _as_stored(weight, base)
        wanted = self._inputs(name)
        if wanted is not None and (inputs != wanted or (weight.ndim == 3 and not transposed)):
            raise MissingStatistic(
                f"{name}: the model multiplies {inputs} inputs with it, but it is read as matrices with {wanted} "
                "inputs; leave it out with Select(exclude=...)"
            )
        if index is None and weight.ndim == 3:
            for number in range(weight.shape[0]):
                self._see(Product(name, number, x[number] if x.ndim == 3 else x, transposed=turned))
        else:
            self._see(Product(name, index or 0, x, transposed=turned))

    def _sorted_rows(self, x: Tensor, weight: Tensor, offs: Tensor | None) -> None:
        """Rows in the order of their experts, ``offs`` [E] where each one's end: ``[S, in]`` times ``[E, in, out]``."""
        found = self._find(weight)
        if found is None or offs is None or x.ndim != 2 or weight.ndim != 3:
            return
        ends = offs.tolist()
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end > start:
                rows = x.detach()[start:end]
                self._see(Product(found[0], number, rows, transposed=_as_stored(weight, found[2])))

    def _inputs(self, name: str) -> int | None:
        view = self._views.get(name)
        return None if view is None or view.inner != view.folded[2] else view.folded[2]

    def _conv(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {
            "stride": 1,
            "padding": 0,
            "dilation": 1,
            "groups": 1,
            **dict(zip(names, args, strict=False)),
            **kwargs,
        }
        found = self._find(given["weight"])
        if found is not None:
            options = {key: given[key] for key in names[3:]}
            self._see(Product(found[0], 0, given["input"].detach(), options, func))


def _as_stored(weight: Tensor, base: Tensor) -> bool:
    """Whether a matrix lies as the parameter holds it, and not transposed."""
    there, here = (base.shape[-2:], base.stride()[-2:]), (weight.shape[-2:], weight.stride()[-2:])
    return here == there or here != (there[0][::-1], there[1][::-1])


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any], first: str, second: str) -> tuple[Any, Any]:
    pair = [*args[:2]]
    pair += [kwargs.get(key) for key in (first, second)[len(pair) :]]
    return pair[0], pair[1]


def unfolded(product: Product, shape: tuple[int, ...]) -> Tensor:
    """The rows that a weight of ``shape`` meets: ``[groups, tokens, in]``, columns in the order of the default view.

    Raises:
        MissingStatistic: a 3-D convolution.
    """
    x = product.x
    if product.conv is None:
        return x.reshape(1, -1, x.shape[-1])
    _, inn, *kernel = shape
    if len(kernel) == 3:
        raise MissingStatistic(f"{product.name}: the rows of a three-dimensional convolution are not known")
    if x.ndim == len(kernel) + 1:
        x = x.unsqueeze(0)
    stride, dilation = _pair(product.conv["stride"], kernel), _pair(product.conv["dilation"], kernel)
    groups = int(product.conv["groups"])
    x, padding = _padded(x, product.conv["padding"], kernel, dilation)
    if len(kernel) == 1:
        x, kernel = x.unsqueeze(2), [1, *kernel]
        stride, dilation, padding = (1, *stride), (1, *dilation), (0, *padding)
    columns = F.unfold(x, tuple(kernel), dilation, padding, stride)  # [n, in * positions, places]
    positions = kernel[0] * kernel[1]
    columns = columns.reshape(len(x), groups, inn, positions, -1)
    return columns.permute(1, 0, 4, 3, 2).reshape(groups, -1, positions * inn)


def _pair(value: Any, kernel: list[int]) -> tuple[int, ...]:
    return (value,) * len(kernel) if isinstance(value, int) else tuple(value)


def _padded(x: Tensor, padding: Any, kernel: list[int], dilation: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    if padding != "same":
        return x, _pair(0 if padding == "valid" else padding, kernel)
    around: list[int] = []
    for size, step in reversed([*zip(kernel, dilation, strict=True)]):
        total = step * (size - 1)
        around += [total // 2, total - total // 2]
    return F.pad(x, around), (0,) * len(kernel)
