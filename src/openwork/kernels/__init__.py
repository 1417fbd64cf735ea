"""Fast sparse products on the processor: layouts, operators, and the compiled kernels behind them."""

from openwork.kernels import ops as ops
from openwork.kernels.candidates import kinds_of, layout_of, multiplies_int8
from openwork.kernels.layout import Columns, Layout, block_layout, column_layout, columns_of_blocks
from openwork.kernels.native import isa, native

__all__ = [
    "Columns",
    "Layout",
    "block_layout",
    "column_layout",
    "columns_of_blocks",
    "isa",
    "kinds_of",
    "layout_of",
    "multiplies_int8",
    "native",
]
