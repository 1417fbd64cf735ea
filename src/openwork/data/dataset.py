"""A data set is four tensors or two streamed sources, a number of classes and a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.data.augment import Augment, check_augment
from openwork.data.sources import Source, TensorSource
from openwork.errors import DataError


class NotInMemoryError(DataError, AttributeError):
    """Tensors were asked of a data set that reads its samples from files as they are needed."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples ready for a model: ``x`` normalised float32 with the channels first, ``y`` class numbers.

    ``augment`` is a hint for training: what may be done to a picture without changing its class. ``sizes`` is for
    tables: the last ``len(sizes)`` columns of x are category numbers, each from 0 to below its size.
    """

    name: str
    x_train: Tensor  # [N, ...]
    y_train: Tensor  # [N]
    x_test: Tensor
    y_test: Tensor
    classes: int
    augment: Augment = None
    sizes: tuple[int, ...] = ()

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
            if self.sizes:
                self._check_sizes(part, x.flatten(1))
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(
                f"{self.name}: train and test samples must have one shape, "
                f"got {tuple(self.x_train.shape[1:])} and {tuple(self.x_test.shape[1:])}"
            )

    def _check_sizes(self, part: str, rows: Tensor) -> None:
        if len(self.sizes) > rows.shape[1]:
            raise DataError(
                f"{self.name}: sizes must not name more than the {rows.shape[1]} columns, got {len(self.sizes)}"
            )
        for column, size in zip(rows.T[-len(self.sizes) :], self.sizes, strict=True):
            low, high = float(column.min()), float(column.max())
            if not 0 <= low <= high < size:
                raise DataError(
                    f"{self.name}: a categorical column of x_{part} must hold 0..{size - 1} as its entry of sizes "
                    f"says, got {low:g}..{high:g}"
                )

    @property
    def train(self) -> Source:
        """The training samples, for ``Batches.over``."""
        return TensorSource(self.x_train, self.y_train, self.augment)

    @property
    def test(self) -> Source:
        """The test samples."""
        return TensorSource(self.x_test, self.y_test)

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


class StreamedSet(DataSet):
    """A data set too large for memory: two sources instead of four tensors; everything else is alike.

    Args:
        name: for messages.
        train: the training samples.
        test: the test samples, of the same shape.
        classes: number of classes.
        sizes: as in ``DataSet``.

    Raises:
        DataError: a side is empty, or the shapes differ.
        NotInMemoryError: (a DataError too) ``x_train`` and its like were read.
    """

    def __init__(self, name: str, train: Source, test: Source, classes: int, sizes: tuple[int, ...] = ()):
        if len(train) == 0 or len(test) == 0:
            raise DataError(f"{name}: train and test must hold samples, got {len(train)} and {len(test)}")
        if train.shape != test.shape:
            raise DataError(f"{name}: train and test must give one shape of sample, got {train.shape}, {test.shape}")
        given = {"name": name, "_train": train, "_test": test, "classes": classes, "augment": None, "sizes": sizes}
        for key, value in given.items():
            object.__setattr__(self, key, value)  # the parent is frozen

    def __getattr__(self, name: str) -> Tensor:
        if name in ("x_train", "y_train", "x_test", "y_test"):
            raise NotInMemoryError(
                f"{self.name} is streamed and has no tensor {name}; read it in batches with Batches.over(data.train, "
                "batch_size) or data.test.read(numbers)"
            )
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"StreamedSet({self.name!r}, {len(self.train)} + {len(self.test)} samples {self.input_shape})"

    @property
    def train(self) -> Source:
        return self.__dict__["_train"]

    @property
    def test(self) -> Source:
        return self.__dict__["_test"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.shape

    def fingerprint(self) -> str:
        """Sixteen hex digits of a SHA-256 over what the sources tell of themselves, not over every byte."""
        digest = hashlib.sha256(self.train.fingerprint())
        digest.update(self.test.fingerprint())
        return digest.hexdigest()[:16]
