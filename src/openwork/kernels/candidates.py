"""The layouts in which a kernel could run a stored matrix."""

from __future__ import annotations

from dataclasses import replace

import torch

from openwork.errors import FormatError
from openwork.formats import BlockSparse, Format, NMSparse
from openwork.formats.base import row_of
from openwork.kernels.layout import (
    LONGEST,
    Columns,
    Layout,
    bits_layout,
    block_layout,
    column_layout,
    columns_of_blocks,
    int8_layout,
)
from openwork.kernels.native import dots, spreads

HEIGHTS = (8, 4, 2, 1)
BITS = 0.16  # share of stored weights from which bits are read faster than places, measured with one token


def kinds_of(fmt: Format) -> tuple[str, ...]:
    """The kernels that can run a format, the likely fastest first: ``block``, ``column``."""
    from openwork.kernels.native import strip_of

    blocks = isinstance(fmt, BlockSparse) and strip_of(fmt.height) > 0 and not _by_row(fmt)
    return ("block", "column") if blocks else ("column",)


def multiplies_int8(fmt: Format) -> bool:
    """Whether tokens rounded to int8 can be multiplied by a stored matrix as it is, the kind ``int8``."""
    if not isinstance(fmt, BlockSparse) or not _by_row(fmt) or fmt.dtype != torch.int8:
        return False
    return fmt.height % 16 == 0 and fmt.width % 4 == 0 and fmt.cols <= LONGEST


def layout_of(fmt: Format, kind: str, *, run: int, few: bool = False) -> Layout:
    """The layout of one kind.

    Values stay in the type they are stored in where the kernel can scale them; int8 with a scale for each large block
    or for a group of columns is widened to float32 for columns.

    Args:
        fmt: the stored matrix.
        kind: one of ``kinds_of(fmt)``, or ``int8``; that is ``block`` in float32 on processors without such products.
        run: inputs that lie side by side in memory: all of a linear layer, the channels of a convolution.
        few: for products with at most four tokens (columns only).

    Raises:
        FormatError: ``int8`` for a matrix that it does not suit.
    """
    if kind == "int8":
        return _int8(fmt)
    if kind == "block" and isinstance(fmt, BlockSparse):
        found = block_layout(fmt.values, fmt.columns, fmt.row_starts, fmt.rows, fmt.cols, run=run, scales=fmt.scales)
        if found is not None:
            return found
    columns = _columns(fmt)
    if few and columns.height == 1 and spreads() and len(columns.values) >= BITS * max(1, fmt.rows * fmt.cols):
        return bits_layout(columns)
    return column_layout(columns, few=few)


def _int8(fmt: Format) -> Layout:
    if not isinstance(fmt, BlockSparse) or fmt.scales is None or not multiplies_int8(fmt):
        raise FormatError(
            "int8: products of int8 take blocks stored in int8 with a scale for each row, of a height that 16 divides "
            f"and a width that 4 divides, and at most {LONGEST} inputs; got {fmt!r}"
        )
    places = (fmt.columns, fmt.row_starts, fmt.rows, fmt.cols)
    found = int8_layout(fmt.values, *places, scales=fmt.scales) if dots() else None
    if found is None:
        wide = fmt.values.float() * fmt.scales.float()[row_of(fmt.row_starts)][:, :, None]
        found = block_layout(wide, *places, run=fmt.cols)
    return column_layout(_columns(fmt)) if found is None else found


def _by_row(fmt: BlockSparse) -> bool:
    """Whether a scale belongs to an output, not to a block."""
    return fmt.scales is not None and fmt.scales.ndim == 2


def _columns(fmt: Format) -> Columns:
    if isinstance(fmt, BlockSparse):
        height = next(h for h in HEIGHTS if fmt.height % h == 0)
        values = fmt.values if fmt.scales is None or _by_row(fmt) else fmt.values.float() * fmt.scales[:, None, None]
        found = columns_of_blocks(values, fmt.columns, fmt.row_starts, fmt.rows, fmt.cols, height)
        return replace(found, scales=fmt.scales.flatten()) if fmt.scales is not None and _by_row(fmt) else found
    matrix = fmt.unpack()
    height = 4 if isinstance(fmt, NMSparse) and fmt.share == 4 else 1
    rows = -(-fmt.rows // height) * height
    padded = torch.nn.functional.pad(matrix, (0, 0, 0, rows - fmt.rows)).view(rows // height, height, fmt.cols)
    groups, inputs = (padded != 0).any(1).nonzero(as_tuple=True)
    values = padded[groups, :, inputs]
    if fmt.scales is not None and fmt.dtype == torch.int8 and fmt.scales.numel() == fmt.rows:
        scales = torch.nn.functional.pad(fmt.scales.flatten(), (0, rows - fmt.rows), value=1.0)
        steps = (values / scales.view(-1, height)[groups]).round().to(torch.int8)
        return Columns(fmt.rows, fmt.cols, groups, inputs, steps, scales)
    return Columns(
        fmt.rows, fmt.cols, groups, inputs, values.to(fmt.dtype if fmt.dtype == torch.bfloat16 else torch.float32)
    )
