"""PneumoniaMNIST: 5,856 chest X-rays of children, 28x28 grey, normal (0) or pneumonia (1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openwork.data.dataset import DataSet
from openwork.data.pixels import normalised
from openwork.data.places import Root, arrays_of, asset_file
from openwork.errors import DataError

FILE = "pneumoniamnist.npz"
PARTS = ("train", "val", "test")
MEAN, STD = [0.57], [0.17]


def pneumonia_mnist(root: Root = None, validation: bool = False, normal: int | None = None) -> DataSet:
    """Read the file of the MedMNIST collection: 4,708 training, 524 validation and 624 test pictures.

    74 % of the training pictures show pneumonia, 62.5 % of the test pictures.

    Args:
        root: the file or its folder; ``OPENWORK_DATA`` and ``OPENWORK_ASSETS`` are searched next.
        validation: test on the validation pictures.
        normal: train on only so many normal pictures, evenly spaced, for a larger imbalance; None takes all.

    Raises:
        DataError: the file is missing or damaged, or has fewer normal pictures than asked for.
    """
    path = asset_file("pneumonia-mnist", FILE, root)
    test = "val" if validation else "test"
    keys = [f"{part}_{what}" for part in ("train", test) for what in ("images", "labels")]
    x_train, y_train, x_test, y_test = arrays_of(path, keys)
    for x, y in ((x_train, y_train), (x_test, y_test)):
        if x.shape[1:] != (28, 28) or x.dtype != np.uint8 or y.size != len(x):
            raise DataError(f"{path}: pictures must be bytes of 28x28 with a label each, got {x.dtype} {x.shape}")
    if normal is not None:
        healthy = np.flatnonzero(y_train.reshape(-1) == 0)
        if not 1 <= normal <= len(healthy):
            raise DataError(f"pneumonia-mnist: normal must lie in 1..{len(healthy)}, got {normal}")
        ill = np.flatnonzero(y_train.reshape(-1) == 1)
        chosen = np.sort(np.concatenate([healthy[np.arange(normal) * len(healthy) // normal], ill]))
        x_train, y_train = x_train[chosen], y_train[chosen]
    return DataSet("pneumonia-mnist", _pixels(x_train), _labels(y_train), _pixels(x_test), _labels(y_test), classes=2)


def _pixels(x: np.ndarray) -> Tensor:
    return normalised(torch.from_numpy(x)[..., None], MEAN, STD)


def _labels(y: np.ndarray) -> Tensor:
    return torch.from_numpy(y.reshape(-1).astype(np.int64))
