"""A data set is four tensors, a number of classes and a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.data.augment import Augment, check_augment
from openwork.errors import DataError


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples ready for a model: ``x`` normalised float32 with the channels first, ``y`` class numbers.

    ``augment`` is a hint for training: what may be done to a picture without changing its class.
    """

    name: str
    x_train: Tensor  # [N, ...]
    y_train: Tensor  # [N]
    x_test: Tensor
    y_test: Tensor
    classes: int
    augment: Augment = None

    def __post_init__(self) -> None:
        check_augment(self.augment, self.name)
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.dtype != torch.float32 or y.dtype != torch.int64:
                raise DataError(
                    f"{self.name}: x_{part} must be float32 and y_{part} int64, got {x.dtype} and {y.dtype}"
                )
            if len(x) != len(y) or len(x) == 0:
                raise DataError(
                    f"{self.name}: x_{part} and y_{part} must have one length above 0, got {len(x)} and {len(y)}"
                )
            if int(y.min()) < 0 or int(y.max()) >= self.classes:
                raise DataError(
                    f"{self.name}: y_{part} must lie in 0..{self.classes - 1}, got {int(y.min())}..{int(y.max())}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(
                f"{self.name}: train and test samples must have one shape, "
                f"got {tuple(self.x_train.shape[1:])} and {tuple(self.x_test.shape[1:])}"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x_train.shape[1:])

    def fingerprint(self) -> str:
        """Sixteen hex digits of a SHA-256 over shapes and bytes: equal for equal data, for manifests."""
        digest = hashlib.sha256()
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]
