"""Embeddings and a multi-layer perceptron for rows of numbers and categories, as click logs have them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openwork.errors import RecipeError
from openwork.zoo.checks import positive


class ClickMLP(nn.Module):
    """The numbers as they are and an embedding of each category, side by side, then dense layers with ReLU.

    ``layers.0`` is the first dense layer: its columns are first the numbers, then ``embedding`` columns for each
    categorical field, so choosing columns of ``layers.0.weight`` chooses what the network may look at.

    The tables of all fields lie in one matrix ``embedding.weight``, field after field.
    """

    offsets: Tensor  # [fields]: the first row of each field

    def __init__(self, numbers: int, sizes: Sequence[int], classes: int, embedding: int, hidden: Sequence[int]):
        super().__init__()
        self.numbers = numbers
        self.embedding = nn.Embedding(sum(sizes), embedding) if sizes else None
        starts = [sum(sizes[:field]) for field in range(len(sizes))]
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        layers: list[nn.Module] = []
        inputs = numbers + embedding * len(sizes)
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(embedding))

    def forward(self, x: Tensor) -> Tensor:
        """Rows ``[n, ...]`` of float32 with the categories last, each a whole number; logits ``[n, classes]``."""
        x = x.flatten(1)
        if self.embedding is None:
            return self.layers(x)
        rows = x[:, self.numbers :].long() + self.offsets
        return self.layers(torch.cat([x[:, : self.numbers], self.embedding(rows).flatten(1)], dim=1))


def click_mlp(
    input_shape: Sequence[int] = (39,),
    classes: int = 2,
    sizes: Sequence[int] = (),
    embedding: int = 10,
    hidden: Sequence[int] = (400, 400, 400),
) -> ClickMLP:
    """The deep part of the usual click models: embeddings of width 10 and three dense layers of 400.

    Args:
        input_shape: shape of one row; what it holds is counted.
        classes: number of logits; 2 for the cross-entropy of the jobs.
        sizes: categories of each of the last fields; the fields before them are numbers. A data set of rows
            knows its sizes, and a job passes them on.
        embedding: columns for each categorical field.
        hidden: width of each dense layer.

    Raises:
        RecipeError: more sizes than fields, or a size below 1.

    Examples:
        >>> model = click_mlp((39,), sizes=[100] * 26)
        >>> tuple(model.layers[0].weight.shape), tuple(model(torch.zeros(5, 39)).shape)
        ((400, 273), (5, 2))
    """
    if not input_shape or min(input_shape) < 1:
        raise RecipeError(f"click_mlp: input_shape must have sizes above 0, got {tuple(input_shape)}")
    fields = math.prod(input_shape)
    if len(sizes) > fields:
        raise RecipeError(f"click_mlp: sizes must name at most the {fields} fields of a row, got {len(sizes)}")
    for width in (classes, embedding, *sizes, *hidden):
        positive("click_mlp", width=width)
    return ClickMLP(fields - len(sizes), sizes, classes, embedding, hidden)
