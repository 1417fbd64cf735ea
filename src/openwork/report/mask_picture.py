"""A mask as a small greyscale PNG, written by hand: kept is dark, pruned is white."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

import torch
from torch import Tensor

from openwork.errors import OpenworkError

ROWS, COLUMNS = 256, 384


def mask_matrix(mask: Tensor) -> Tensor:
    """The mask as ``[out, rest]``: first dimension down, kernel positions and then input channels across."""
    if mask.dtype != torch.bool:
        raise OpenworkError(f"a mask picture needs a bool tensor, got {mask.dtype}; compare with zero first")
    if mask.numel() == 0:
        raise OpenworkError(f"a mask picture needs at least one entry, got shape {tuple(mask.shape)}")
    mask = mask.detach().cpu()
    if mask.dim() < 2:
        return mask.reshape(1, -1)
    return mask.permute(0, *range(2, mask.dim()), 1).reshape(mask.shape[0], -1)


def kept_shares(mask: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Kept share behind each pixel, float32 ``[<= rows, <= columns]``: means of equal blocks, edges smaller."""
    shares = mask_matrix(mask)
    high, wide = -(-shares.shape[0] // rows), -(-shares.shape[1] // columns)
    if high == wide == 1:
        return shares.float()
    return _means(_means(shares.float(), wide).T, high).T


def mask_png(mask: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> bytes:
    """PNG of at most ``rows`` x ``columns`` pixels.

    One pixel an entry (1 bit deep) when the matrix fits. Otherwise a pixel stands for a block (4 bits deep)
    and its darkness is the square root of the kept share, so that 5 % is still seen.

    Raises:
        OpenworkError: not a bool tensor, no entries, or no pixels allowed.
    """
    if rows < 1 or columns < 1:
        raise OpenworkError(f"a mask picture needs at least one pixel, got rows={rows} and columns={columns}")
    shares = kept_shares(mask, rows, columns)
    whole = shares.numel() == mask.numel()
    depth = 1 if whole else 4
    levels = ((1 - shares.sqrt()) * (2**depth - 1)).round().to(torch.uint8)
    height, width = levels.shape
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    lines = _packed(levels, depth)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def mask_data_uri(mask: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> str:
    """The picture as a ``data:`` address, for a page that stands alone."""
    return "data:image/png;base64," + b64encode(mask_png(mask, rows, columns)).decode("ascii")


def _means(matrix: Tensor, block: int) -> Tensor:
    """Means of ``block`` neighbouring columns; the last block may be smaller."""
    if block == 1:
        return matrix
    starts = torch.arange(0, matrix.shape[1], block)
    sums = matrix.new_zeros(matrix.shape[0], len(starts))
    sums.index_add_(1, torch.arange(matrix.shape[1]) // block, matrix)
    return sums / (matrix.shape[1] - starts).clamp(max=block)


def _packed(levels: Tensor, depth: int) -> list[bytes]:
    """Rows of bytes, several pixels a byte, first pixel in the high bits, as PNG wants them."""
    each = 8 // depth
    padded = torch.nn.functional.pad(levels, (0, -levels.shape[1] % each)).view(levels.shape[0], -1, each)
    shifts = torch.tensor([8 - depth * (i + 1) for i in range(each)], dtype=torch.uint8)
    packed = (padded << shifts).sum(2, dtype=torch.uint8)
    return [bytes(row.tolist()) for row in packed]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
