"""Rows of small integers as bytes. Bit ``i`` of a row lies in byte ``i // 8`` at place ``i % 8``, lowest first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pack_rows(bits: Tensor) -> Tensor:
    """bool ``[rows, k]`` -> uint8 ``[rows, ceil(k / 8)]``; the filler bits of the last byte are zero.

    Examples:
        >>> pack_rows(torch.tensor([[True, False, False, True, False, False, False, False, True]]))
        tensor([[9, 1]], dtype=torch.uint8)
    """
    rows, k = bits.shape
    padded = F.pad(bits.to(torch.uint8), (0, -k % 8)).view(rows, -(-k // 8), 8)
    places = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=bits.device)
    return (padded * places).sum(2, dtype=torch.uint8)


def unpack_rows(packed: Tensor) -> Tensor:
    """uint8 ``[rows, b]`` -> bool ``[rows, 8 b]``, filler bits included."""
    rows, b = packed.shape
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> places) & 1).bool().view(rows, 8 * b)


def count_rows(packed: Tensor) -> Tensor:
    """Set bits of every row: uint8 ``[rows, b]`` -> int64 ``[rows]``, without unpacking."""
    pairs = packed - ((packed >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((fours + (fours >> 4)) & 0x0F).sum(1, dtype=torch.int64)


def pack_numbers(numbers: Tensor, width: int) -> Tensor:
    """Integers below ``2 ** width`` (at most 8 bits), ``[rows, k]`` -> uint8 ``[rows, ceil(k width / 8)]``."""
    rows, k = numbers.shape
    places = torch.arange(width, dtype=torch.uint8, device=numbers.device)
    bits = (numbers.to(torch.uint8)[:, :, None] >> places) & 1
    return pack_rows(bits.bool().reshape(rows, k * width))


def unpack_numbers(packed: Tensor, k: int, width: int) -> Tensor:
    """Inverse of ``pack_numbers``: uint8 ``[rows, ceil(k width / 8)]`` -> uint8 ``[rows, k]``."""
    rows = packed.shape[0]
    bits = unpack_rows(packed)[:, : k * width].reshape(rows, k, width).to(torch.uint8)
    places = torch.tensor([1 << i for i in range(width)], dtype=torch.uint8, device=packed.device)
    return (bits * places).sum(2, dtype=torch.uint8)
