"""Weights that operators are given, checked before a kernel reads them: kernels follow every index they are given.

Types, shapes and the order in memory are compared in every call. The numbers in the indices are read once for each
tensor, and again when it has moved or was changed in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from openwork.errors import FormatError
from openwork.formats.bits import count_rows
from openwork.formats.stored import demand
from openwork.kernels.layout import AFTER, LONGEST

KINDS = {"sparse_linear": ("block", "column", "bits", "int8"), "sparse_conv2d": ("block", "column", "int8")}
TENSORS = {
    "block": (("inputs", torch.int32, 1), ("starts", torch.int64, 1)),
    "column": (("inputs", torch.uint16, 1), ("starts", torch.int64, 1), ("order", torch.int32, 1)),
    "bits": (("bits", torch.uint8, 2), ("starts", torch.int64, 1)),
    "int8": (("inputs", torch.int32, 1), ("starts", torch.int64, 1), ("sums", torch.int32, 1)),
}
"""Kind -> name, type and number of dimensions of the tensors behind the values."""
SIZES = {
    "block": ("height", "depth", "outputs", "inputs"),
    "column": ("chunk", "height", "outputs", "part", "inputs"),
    "bits": ("height", "depth", "outputs", "inputs"),
    "int8": ("height", "depth", "outputs", "inputs"),
}
LARGEST = {"height": 1 << 16, "depth": 1 << 31, "chunk": 1 << 16, "part": 1 << 16}  # what a kernel can count with
_AGAIN = "pack the model again, or export it again"
STORES = (torch.float32, torch.bfloat16, torch.int8)


@dataclass(slots=True)
class Known:
    """Weights that were found sound, as they were then, and what a native function takes for them."""

    kind: str
    sizes: list[int]
    looks: tuple[list[int], list[int], list[tuple[object, ...]]]
    gone: list[weakref.ref[Tensor]]
    arguments: tuple[int, ...] = ()

    @property
    def places(self) -> list[int]:
        """Where the tensors lie."""
        return self.looks[1]


_place, _ordered = Tensor.data_ptr, Tensor.is_contiguous
_counts = attrgetter("_version", "shape", "dtype")
_known: dict[int, Known] = {}  # by the identity of the values; an entry goes with any of its tensors


def demand_sound(op: str, kind: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Known | None:
    """Refuse weights with which a kernel would read or write where it must not.

    What was found sound is kept for the next call, but for tensors made in inference mode, whose changes torch does not
    count: for those the answer is None.

    Args:
        op: name of the operator, a key of ``KINDS``.
        kind: of the layout.
        tensors: of the layout.
        sizes: of the layout.

    Raises:
        FormatError: a kind that the operator does not have, a tensor of the wrong type, shape or order in memory, or an
            index that leads out of the weights or the inputs.
    """
    key = id(tensors[0]) if tensors else 0
    found = _known.get(key)
    if found is not None:
        same = found.kind == kind and found.sizes == sizes and found.looks == _looks(tensors)
        if same and all(map(_ordered, tensors)) and kind in KINDS[op]:
            return found
    _examine(op, kind, tensors, sizes)
    if any(t.is_inference() for t in tensors):
        return None
    gone = [weakref.ref(t, lambda _: _known.pop(key, None)) for t in tensors]
    new = _known[key] = Known(kind, list(sizes), _looks(tensors), gone)
    return new


def demand_window(op: str, *window: Sequence[int]) -> None:
    """Refuse a convolution that no image can have.

    Args:
        op: name of the operator.
        window: kernel, stride, padding and dilation, two numbers each.

    Raises:
        FormatError: another count of numbers, or one below its least: 0 for paddings, 1 for the others.
    """
    kernel, stride, padding, dilation = window
    fits = all(len(pair) == 2 for pair in window) and min(*kernel, *stride, *dilation) >= 1 and min(padding) >= 0
    if not fits:
        raise FormatError(
            f"{op}: kernel, stride and dilation must be two numbers from 1 on, padding two from 0 on, "
            f"got {list(kernel)}, {list(stride)}, {list(dilation)} and {list(padding)}"
        )


def _looks(tensors: Sequence[Tensor]) -> tuple[list[int], list[int], list[tuple[object, ...]]]:
    """What changes with the tensors, without a loop in Python."""
    return [*map(id, tensors)], [*map(_place, tensors)], [*map(_counts, tensors)]


def _examine(op: str, kind: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    demand(kind in KINDS[op], op, f"the kind of weights must be one of {', '.join(KINDS[op])}, got {kind!r}")
    names = SIZES[kind]
    demand(len(sizes) == len(names), op, f"{kind} weights have the sizes {', '.join(names)}, got {len(sizes)} numbers")
    for name, size in zip(names, sizes, strict=True):
        least, most = int(name in LARGEST), LARGEST.get(name, 1 << 62)
        demand(least <= size <= most, op, f"the size {name} of {kind} weights must be {least} to {most}, got {size}")
    demand(len(tensors) > 0, op, f"{kind} weights begin with their values, got no tensors")
    values = tensors[0]
    demand(values.dtype in STORES, op, f"values must be float32, bfloat16 or int8, got {values.dtype}")
    wanted: list[tuple[str, torch.dtype, int]] = [*TENSORS[kind]]
    if values.dtype == torch.int8:
        wanted.append(("scales", torch.float32, 1))
    needed = ", ".join(["values", *(name for name, *_ in wanted)])
    demand(
        len(tensors) == len(wanted) + 1,
        op,
        f"{kind} weights of {values.dtype} are the tensors {needed}, got {len(tensors)} tensors",
    )
    demand(_plain(values), op, "values must be contiguous and on the processor; call contiguous() on them")
    for (name, dtype, dims), tensor in zip(wanted, tensors[1:], strict=True):
        demand(
            tensor.dtype == dtype and tensor.dim() == dims,
            op,
            f"{name} must be {dtype} in {dims} dimensions, got {tensor.dtype} in {tensor.dim()}",
        )
        demand(_plain(tensor), op, f"{name} must be contiguous and on the processor; call contiguous() on them")
    _EXAMINE[kind](op, tensors, sizes)


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.is_cpu and tensor.is_contiguous()


def _examine_block(op: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    values = tensors[0]
    _, depth, _, cols = sizes
    blocks, height = len(values) if values.dim() else 0, sizes[0]
    widest = max(cols, 1 << 16)
    demand(depth <= widest, op, f"the depth of blocks must be at most {widest}, got {depth}")
    pairs = values.dim() == 4 and values.dtype == torch.bfloat16 and depth % 2 == 0
    shape: tuple[int, ...] = (blocks, depth // 2, height, 2) if pairs else (blocks, depth, height)
    if values.dtype == torch.int8:
        _demand_length(op, "scales", tensors[3], blocks)
    _examine_places(op, tensors, sizes, blocks, shape)


def _examine_int8(op: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    values, strips = tensors[0], len(tensors[2]) - 1
    height, depth, _, cols = sizes
    demand(values.dtype == torch.int8, op, f"values of the kind int8 must be int8, got {values.dtype}")
    demand(
        depth % 4 == 0 and cols <= LONGEST,
        op,
        f"int8 blocks have a depth that 4 divides and at most {LONGEST} inputs, got {depth} and {cols}",
    )
    blocks = len(values) if values.dim() else 0
    _examine_places(op, tensors, sizes, blocks, (blocks, depth // 4, height, 4))
    for name, tensor in (("sums", tensors[3]), ("scales", tensors[4])):
        _demand_length(op, name, tensor, strips * height)


def _examine_places(
    op: str, tensors: Sequence[Tensor], sizes: Sequence[int], blocks: int, shape: tuple[int, ...]
) -> None:
    """What all kinds of blocks have: values of one shape, and indices that stay inside."""
    values, inputs, starts = tensors[:3]
    height, depth, outputs, cols = sizes
    demand(values.shape == shape, op, f"values must have the shape {shape}, got {tuple(values.shape)}")
    _demand_length(op, "inputs", inputs, blocks)
    _demand_starts(op, starts, -(-outputs // height), blocks)
    places = inputs.long()
    demand(
        bool(((places >= 0) & (places < cols) & (places % depth == 0)).all()),
        op,
        f"inputs must be multiples of the depth {depth} from 0 to below {cols}; {_AGAIN}",
    )


def _examine_column(op: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    values, inputs, starts, order = tensors[:4]
    chunk, height, outputs, part, cols = sizes
    groups, chunks = max(1, -(-outputs // height)), max(1, -(-cols // chunk))
    columns = len(values) if values.dim() else 0
    shape = (columns, height)
    demand(values.shape == shape, op, f"values must have the shape {shape}, got {tuple(values.shape)}")
    _demand_length(op, "inputs", inputs, columns)
    _demand_length(op, "order", order, chunks * groups)
    _demand_starts(op, starts, chunks * groups, columns)
    if values.dtype == torch.int8:
        demand(
            len(tensors[4]) >= groups * height,
            op,
            f"scales must hold at least {groups * height} numbers, got {len(tensors[4])}",
        )
    every, slots = torch.arange(groups, device="cpu"), order.view(chunks, groups)
    demand(
        bool((slots.sort(dim=1).values == every).all() and (slots // part == every // part).all()),
        op,
        f"order must name each of the {groups} groups once in every chunk, part by part; {_AGAIN}",
    )
    wide = inputs.int()  # few operations know uint16
    last = wide[int(starts[(chunks - 1) * groups]) :]
    fit = bool((wide < chunk).all() and (last < cols - (chunks - 1) * chunk).all())
    demand(fit, op, f"inputs must lie inside their chunk of {chunk} and below {cols}; {_AGAIN}")


def _examine_bits(op: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    values, bits, starts = tensors[:3]
    outputs, cols = sizes[2:]
    stored, shape = values.numel() - AFTER, (outputs, -(-cols // 8))
    demand(
        values.dim() == 1 and stored >= 0,
        op,
        f"values must have one dimension and {AFTER} more than are stored, got the shape {tuple(values.shape)}",
    )
    demand(bits.shape == shape, op, f"bits must have the shape {shape}, got {tuple(bits.shape)}")
    _demand_starts(op, starts, outputs, stored)
    if values.dtype == torch.int8:
        _demand_length(op, "scales", tensors[3], outputs)
    demand(
        torch.equal(count_rows(bits), starts.diff()),
        op,
        f"starts must leave every row as many values as it has bits; {_AGAIN}",
    )
    behind = cols % 8
    demand(
        behind == 0 or not bool((bits[:, -1:] >> behind).any()),
        op,
        f"bits behind the last of the {cols} inputs must be zero; {_AGAIN}",
    )


def _demand_length(op: str, name: str, tensor: Tensor, length: int) -> None:
    demand(len(tensor) == length, op, f"{name} must hold {length} numbers, got {len(tensor)}")


def _demand_starts(op: str, starts: Tensor, parts: int, last: int) -> None:
    _demand_length(op, "starts", starts, parts + 1)
    rising = bool((starts[1:] >= starts[:-1]).all())
    demand(
        rising and int(starts[0]) == 0 and int(starts[-1]) == last,
        op,
        f"starts must rise from 0 to {last}, got {int(starts[0])} to {int(starts[-1])}; {_AGAIN}",
    )


_EXAMINE = {"block": _examine_block, "column": _examine_column, "bits": _examine_bits, "int8": _examine_int8}
