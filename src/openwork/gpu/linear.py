"""A linear layer that holds only the kept blocks of its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import StructureError
from openwork.gpu.functional import apply, check_options
from openwork.gpu.index import TABLES, BlockIndex, sides


class BlockSparseLinear(nn.Module):
    """``act(x @ W.T + bias)`` with a block-sparse ``W``: the values are trained, the pattern is fixed.

    Parameters: ``values`` ``[n, height, width]`` and ``bias`` ``[rows]`` or None. Buffers in the state dict:
    ``columns`` ``[n]`` and ``row_starts`` ``[block rows + 1]``, int32 (see `BlockIndex`); the tables that kernels
    read are rebuilt from them. On a GPU the Triton kernels run, elsewhere the reference in plain torch.

    Args:
        index: the kept blocks; its device becomes the device of the layer.
        bias: whether there is one.
        activation: applied in the kernel, see `block_linear`.
        precision: of fp32 products, see `block_linear`.
        dtype: of the parameters; torch's default if None.

    Raises:
        KernelError: ``activation`` or ``precision`` is not known.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    columns: Tensor
    row_starts: Tensor

    def __init__(
        self,
        index: BlockIndex,
        bias: bool = True,
        *,
        activation: str = "none",
        precision: str = "ieee",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_options(activation, precision)
        self.sizes = (index.rows, index.cols, index.height, index.width)
        self.activation, self.precision = activation, precision
        shape = (index.blocks, index.height, index.width)
        self.values = nn.Parameter(torch.empty(shape, dtype=dtype, device=index.device))
        self.bias = nn.Parameter(torch.empty(index.rows, dtype=dtype, device=index.device)) if bias else None
        self._hold(index)
        self.reset_parameters()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        mask: Tensor | None,
        block: int | tuple[int, int],
        *,
        activation: str = "none",
        precision: str = "ieee",
    ) -> BlockSparseLinear:
        """The layer that computes ``linear`` with its weight masked, without sharing memory with it.

        A block is kept if the mask keeps any of its weights. Zeros inside a kept block are stored and, in training,
        move like other weights.

        Args:
            linear: the dense layer.
            mask: bool like the weight; None takes the weights that are not zero.
            block: side of the blocks, or (outputs, inputs): 16, 32, 64 or 128.
            activation: applied in the kernel, see `block_linear`.
            precision: of fp32 products, see `block_linear`.

        Raises:
            StructureError: ``linear`` is no linear layer, the mask does not fit its weight, or ``block`` is no such
            side.
            KernelError: ``activation`` or ``precision`` is not known.
        """
        weight = getattr(linear, "weight", None)
        if not isinstance(linear, nn.Linear) or weight is None:
            raise StructureError(f"BlockSparseLinear: from_linear needs an nn.Linear, got {type(linear).__name__}")
        sides(block)
        if mask is None:
            mask = weight.detach() != 0
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise StructureError(
                f"BlockSparseLinear: mask must be bool {tuple(weight.shape)} like the weight, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        index = BlockIndex.of_mask(mask, block).to(weight.device)
        has_bias = linear.bias is not None
        layer = cls(index, has_bias, activation=activation, precision=precision, dtype=weight.dtype)
        with torch.no_grad():
            kept = torch.where(mask.to(weight.device), weight, torch.zeros_like(weight))
            layer.values.copy_(index.values_of(kept))
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
                layer.bias.requires_grad_(linear.bias.requires_grad)
        layer.values.requires_grad_(weight.requires_grad)
        return layer.train(linear.training)

    @property
    def index(self) -> BlockIndex:
        """The kept blocks, on the device of the layer."""
        tables = tuple(getattr(self, f"_{name}") for name in TABLES)
        return BlockIndex(*self.sizes, self.columns, self.row_starts, tables)

    @property
    def density(self) -> float:
        """Kept blocks over all blocks."""
        down, across = self.index.grid
        return self.columns.numel() / (down * across)

    def reset_parameters(self) -> None:
        """Uniform in +- 1 / sqrt(inputs an output reads on average), as `nn.Linear` does; zeros beyond the edges."""
        rows, cols, _, _ = self.sizes
        bound = max(1.0, cols * self.density) ** -0.5
        with torch.no_grad():
            drawn = torch.empty(rows, cols, dtype=self.values.dtype, device=self.values.device).uniform_(-bound, bound)
            self.values.copy_(self.index.values_of(drawn))
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[..., cols]`` to ``[..., rows]``; see `block_linear`."""
        tables = [getattr(self, f"_{name}") for name in TABLES]
        return apply(x, self.values, tables, self.sizes, self.bias, residual, self.activation, self.precision)

    def to_dense(self) -> Tensor:
        """The weight as a ``(rows, cols)`` matrix with zeros; differentiable."""
        return self.index.dense(self.values)

    def extra_repr(self) -> str:
        rows, cols, height, width = self.sizes
        return (
            f"in_features={cols}, out_features={rows}, bias={self.bias is not None}, block=({height}, {width}), "
            f"blocks={self.columns.numel()}, density={self.density:.3g}, activation={self.activation!r}"
        )

    def _hold(self, index: BlockIndex) -> None:
        self.register_buffer("columns", index.columns)
        self.register_buffer("row_starts", index.row_starts)
        for name, table in zip(TABLES, index.tables, strict=True):
            self.register_buffer(f"_{name}", table, persistent=False)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        errors: list[str] = more[-1]
        columns, starts = (state_dict.get(prefix + name) for name in ("columns", "row_starts"))
        if columns is None or starts is None or columns.shape != self.columns.shape:
            super()._load_from_state_dict(state_dict, prefix, *more)
            return
        try:
            index = BlockIndex.build(*self.sizes, columns, starts)
        except StructureError as error:
            errors.append(f"{prefix or 'BlockSparseLinear'}: the index cannot be used: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, *more)
        self._hold(index.to(self.values.device))
