"""A small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwork.errors import RecipeError
from openwork.zoo.checks import image_shape, positive


class Attention(nn.Module):
    """Self-attention with one linear layer each for queries, keys, values and the output."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [N, T, dim]
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, T, dim / heads]
            for layer in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a two-layer network, each after a norm and beside a residual path."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches to tokens, a class token, learned positions, pre-norm blocks, a linear layer."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
    ):
        super().__init__()
        channels, height, width = shape
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, (height // patch) * (width // patch) + 1, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # [N, T, dim]
        x = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def vit(
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    hidden: int | None = None,
) -> ViT:
    """A pre-norm vision transformer with separate query, key and value layers.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        patch: side of a patch; it must divide height and width.
        dim: width of a token; the heads must divide it.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: width inside the two-layer network; None means four times ``dim``.

    Raises:
        RecipeError: a size below 1, or one that does not divide.
    """
    shape = image_shape("vit", input_shape, classes)
    hidden = 4 * dim if hidden is None else hidden
    positive("vit", patch=patch, dim=dim, depth=depth, heads=heads, hidden=hidden)
    if shape[1] % patch or shape[2] % patch:
        raise RecipeError(f"vit: patch {patch} must divide height and width, got {shape[1]}x{shape[2]}")
    if dim % heads:
        raise RecipeError(f"vit: heads {heads} must divide dim, got {dim}")
    return ViT(shape, classes, patch, dim, depth, heads, hidden)
