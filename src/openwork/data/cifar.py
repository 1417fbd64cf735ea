"""CIFAR-10 and CIFAR-100 from their official Python batches: 50,000 + 10,000 colour pictures, 32x32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from openwork.data.dataset import DataSet
from openwork.data.pixels import normalised
from openwork.data.places import ROOT_VARIABLE, Root, not_found, roots
from openwork.data.unpickle import plain_pickle
from openwork.errors import DataError, did_you_mean

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
ROWS_10, ROWS_100 = {"train": 10_000, "test": 10_000}, {"train": 50_000, "test": 10_000}  # pictures a file
MEAN_10, STD_10 = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
MEAN_100, STD_100 = [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]

Part = tuple[np.ndarray[Any, np.dtype[np.uint8]], list[int]]


def cifar10(root: Root = None) -> DataSet:
    """CIFAR-10 from ``data_batch_1`` to ``data_batch_5`` and ``test_batch``.

    For a copy stored as folders of pictures use ``imagefolder`` with ``size=32, crop="shift"``.

    Args:
        root: the folder ``cifar-10-batches-py`` or the one above; ``OPENWORK_DATA`` is searched next.

    Raises:
        DataError: found nowhere, or a file that is damaged, cut short, or holds something else.
    """
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    folder = _find("cifar10", root, "cifar-10-batches-py", [*batches, "test_batch"])
    parts = [_part(folder / name, b"labels", 10, ROWS_10["train"]) for name in batches]
    train = np.concatenate([data for data, _ in parts]), [label for _, labels in parts for label in labels]
    test = _part(folder / "test_batch", b"labels", 10, ROWS_10["test"])
    x_train, y_train = _tensors(train, MEAN_10, STD_10)
    return DataSet("cifar10", x_train, y_train, *_tensors(test, MEAN_10, STD_10), classes=10, augment="shift-flip")


def cifar100(root: Root = None, labels: Literal["fine", "coarse"] = "fine") -> DataSet:
    """CIFAR-100 from its files ``train`` and ``test``; search and errors as for ``cifar10``.

    Args:
        root: the folder ``cifar-100-python`` or the one above.
        labels: ``"fine"`` for 100 classes, ``"coarse"`` for 20.
    """
    if labels not in ("fine", "coarse"):
        raise DataError(f"cifar100: unknown labels {labels!r}; {did_you_mean(labels, ('fine', 'coarse'))}")
    folder = _find("cifar100", root, "cifar-100-python", ["train", "test"])
    key, classes = f"{labels}_labels".encode(), 100 if labels == "fine" else 20
    train, test = (_part(folder / side, key, classes, ROWS_100[side]) for side in ("train", "test"))
    x_train, y_train = _tensors(train, MEAN_100, STD_100)
    x_test, y_test = _tensors(test, MEAN_100, STD_100)
    return DataSet("cifar100", x_train, y_train, x_test, y_test, classes=classes, augment="shift-flip")


def _find(name: str, root: Root, inner: str, files: list[str]) -> Path:
    places = [place / folder for place in roots(root) for folder in ("", inner)]
    for place in places:
        if all((place / file).is_file() for file in files):
            return place
    hint = f"Unpack the Python version from {HOME} and pass its folder ({inner}) as root= or {ROOT_VARIABLE}."
    raise not_found(name, places or ["no folder was named"], hint)


def _part(path: Path, key: bytes, classes: int, rows: int) -> Part:
    """The bytes ``[rows, 3072]`` of one file and its class numbers."""
    content: Any = plain_pickle(path)
    held = {_name(k): v for k, v in content.items()} if isinstance(content, Mapping) else {}
    data, labels = held.get(b"data"), held.get(key)
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        found = sorted(map(str, held)) if held else type(content).__name__
        raise DataError(f"{path} must be a dict with an array data and a list {key.decode()}, got {found}")
    if data.dtype != np.uint8 or data.shape != (rows, 3072) or len(labels) != rows:
        raise DataError(
            f"{path} must hold {rows} rows of 3072 bytes and as many labels, got {data.dtype} {data.shape} and "
            f"{len(labels)} labels; unpack the archive again"
        )
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < classes]
    if wrong:
        raise DataError(f"{path}: {key.decode()} must be integers in 0..{classes - 1}, got {wrong[0]!r}")
    return data, labels


def _name(key: Any) -> Any:
    return key.encode() if isinstance(key, str) else key


def _tensors(part: Part, mean: list[float], std: list[float]) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(part[0]).view(-1, 3, 32, 32).permute(0, 2, 3, 1)
    return normalised(pixels, mean, std), torch.tensor(part[1], dtype=torch.int64)
