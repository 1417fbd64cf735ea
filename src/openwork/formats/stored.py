"""How the kept values of a matrix are stored: float32, bfloat16, or int8 with one scale per group.

int8 is symmetric: ``scale = max(largest magnitude of the group / 127, 2 ** -126)``, ``q = round(value / scale)`` in
``[-127, 127]``. An unpacked value is at most half a scale away from the weight (plus one float32 rounding), that is
1/254 of the largest magnitude of its group, or ``2 ** -127`` where the whole group is smaller than that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.errors import FormatError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
INPUTS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 2**31 - 1
"""Rows, columns and counts of blocks must fit int32; only the row starts of ``Csr`` may be int64."""

_TINY, _HUGE = 2.0**-126, float.fromhex("0x1.020406p+121")
"""The range of scales; 127 times the largest is the largest that float32 can hold."""


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type to store weights of this type in: the smallest that holds them as they are (float32 where none does)."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def demand(fulfilled: bool, who: str, what: str) -> None:
    """Refuse, in one line."""
    if not fulfilled:
        raise FormatError(f"{who}: {what}")


def opened(who: str, matrix: Tensor, mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix that may be packed, as float32, and its mask.

    Raises:
        FormatError: wrong dtypes or shapes, NaN or infinity, a non-zero weight that the mask prunes, or a weight that
            bfloat16 would turn into infinity.
    """
    for name, value in (("the matrix", matrix), ("the mask", mask)):
        demand(isinstance(value, Tensor), who, f"{name} must be a tensor, got {type(value).__name__}")
        demand(
            value.layout is torch.strided and not value.is_meta,
            who,
            f"{name} must hold dense values, got {value.layout}",
        )
    demand(
        matrix.ndim == 2, who, f"the matrix must have two dimensions, got {tuple(matrix.shape)}; open its view first"
    )
    demand(matrix.dtype in INPUTS, who, f"the matrix must be float32, bfloat16 or float16, got {matrix.dtype}")
    demand(mask.dtype == torch.bool, who, f"the mask must be bool, got {mask.dtype}")
    demand(
        mask.shape == matrix.shape,
        who,
        f"the mask must have the shape of the matrix {tuple(matrix.shape)}, got {tuple(mask.shape)}",
    )
    demand(
        mask.device == matrix.device, who, f"mask and matrix must share a device, got {mask.device}, {matrix.device}"
    )
    demand(max(matrix.shape) <= LARGEST, who, f"sides must be at most {LARGEST}, got {tuple(matrix.shape)}")
    demand(dtype in DTYPES.values(), who, f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    wide = matrix.detach().float()
    bad = wide.numel() - int(torch.isfinite(wide).sum())
    demand(bad == 0, who, f"{bad} of {wide.numel()} weights are NaN or infinite; repair the model before packing")
    stray = int(((wide != 0) & ~mask).sum())
    demand(stray == 0, who, f"{stray} weights are not zero although the mask prunes them; write the masks first")
    if dtype == torch.bfloat16:
        huge = wide.numel() - int(torch.isfinite(wide.bfloat16()).sum())
        demand(huge == 0, who, f"{huge} weights are too large for bfloat16; pack as float32")
    return wide, mask


def store(kept: Tensor, group: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Kept values in ``dtype``, and the scales if that is int8.

    Args:
        kept: float32, any shape.
        group: int64, shape of ``kept`` or one that expands to it, the flat index of each value's scale.
        shape: of the scales.
        dtype: float32, bfloat16 or int8.
    """
    if dtype != torch.int8:
        return kept.to(dtype).contiguous(), None
    where = group.expand(kept.shape).reshape(-1)
    count = 1
    for size in shape:
        count *= size
    largest = torch.zeros(count, device=kept.device)
    largest.scatter_reduce_(0, where, kept.abs().reshape(-1), "amax")
    scales = (largest / 127).clamp(_TINY, _HUGE)
    values = (kept.double() / scales.double()[where].view(kept.shape)).round().to(torch.int8)
    return values.contiguous(), scales.view(shape)


def restore(values: Tensor, scales: Tensor | None, group: Tensor) -> Tensor:
    """float32 values, inverse of ``store`` up to rounding."""
    if scales is None:
        return values.float()
    return values.float() * scales.reshape(-1)[group]


def check_values(who: str, values: Tensor) -> None:
    """Stored values are finite; int8 keeps to ``[-127, 127]``."""
    if values.dtype == torch.int8:
        demand(not bool((values == -128).any()), who, "values must lie in -127 ... 127, found -128")
    else:
        bad = values.numel() - int(torch.isfinite(values).sum())
        demand(bad == 0, who, f"{bad} of {values.numel()} values are NaN or infinite")


def check_scales(who: str, scales: Tensor | None, values: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    """int8 has positive, finite float32 scales of one of ``shapes``; the other dtypes have none."""
    if scales is None or values.dtype != torch.int8:
        demand(scales is None, who, f"scales belong to int8 values, these are {values.dtype}")
        demand(values.dtype != torch.int8, who, "int8 values need scales, got none")
        return
    demand(scales.dtype == torch.float32, who, f"scales must be float32, got {scales.dtype}")
    known = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
    demand(tuple(scales.shape) in shapes, who, f"scales must have the shape {known}, got {tuple(scales.shape)}")
    good = bool(((scales > 0) & (scales <= _HUGE)).all())
    demand(good, who, f"scales must be finite and positive, at most {_HUGE:.4g}; the tensors are damaged")


def scale_shapes(rows: int, cols: int) -> tuple[tuple[int, ...], ...]:
    """Of the formats that scale runs of a row: one per row, per 64 or per 128 columns."""
    return tuple((rows, max(1, -(-cols // width))) for width in (max(cols, 1), 64, 128))


def scale_width(who: str, group: int | None, dtype: torch.dtype, cols: int) -> int:
    """Columns that share a scale; ``None`` is the whole row.

    Raises:
        FormatError: another width than 64 or 128, or one for values that have no scales.
    """
    demand(group in (None, 64, 128), who, f"group must be None (one scale per row), 64 or 128 columns, got {group!r}")
    demand(group is None or dtype == torch.int8, who, f"group={group} is for int8 values, the dtype is {dtype}")
    return max(cols, 1) if group is None else group


def scale_of(rows: Tensor, columns: Tensor, cols: int, width: int) -> Tensor:
    """Flat index of the scale of entries ``(rows, columns)`` when ``width`` columns share one; int64."""
    return rows * max(1, -(-cols // width)) + columns // width


def width_of(scales: Tensor | None, cols: int) -> int:
    """How many columns share a scale, told from the shape of the scales ``[rows, groups]``."""
    groups = 1 if scales is None else int(scales.shape[1])
    return next(w for w in (max(cols, 1), 64, 128) if max(1, -(-cols // w)) == groups)
