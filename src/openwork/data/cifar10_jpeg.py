"""A JPEG copy of CIFAR-10: 10,000 training and all 10,000 test pictures, 32x32, in one ``.npz``."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from openwork.data.dataset import DataSet
from openwork.data.pixels import normalised, pillow_image
from openwork.data.places import Root, arrays_of, asset_file
from openwork.errors import DataError

FILE = "cifar10_jpeg_10k10k.npz"
KEYS = ("blob", "offsets", "labels", "is_test")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def cifar10_jpeg(root: Root = None, train: int | None = None, test: int | None = None) -> DataSet:
    """Decode the pictures; compression costs a classifier trained on the originals about ten points.

    Args:
        root: the file or its folder; ``OPENWORK_DATA`` and ``OPENWORK_ASSETS`` are searched next.
        train: take only this many, evenly spaced (the file is sorted by class); None takes all.
        test: likewise.

    Raises:
        DataError: the file or pillow is missing, the file is damaged, or has fewer pictures than asked for.
    """
    Image = pillow_image("cifar10-jpeg")
    path = asset_file("cifar10-jpeg", FILE, root)
    blob, offsets, labels, is_test = arrays_of(path, KEYS)

    def part(name: str, indices: np.ndarray, count: int | None) -> tuple[Tensor, Tensor]:
        if count is not None and not 1 <= count <= len(indices):
            raise DataError(f"cifar10-jpeg: {name} must lie in 1..{len(indices)}, got {count}")
        chosen = indices if count is None else indices[np.arange(count) * len(indices) // count]
        pixels = np.empty((len(chosen), 32, 32, 3), dtype=np.uint8)
        for row, index in enumerate(chosen):
            with Image.open(io.BytesIO(blob[offsets[index] : offsets[index + 1]].tobytes())) as image:
                pixels[row] = np.asarray(image.convert("RGB"))
        return normalised(torch.from_numpy(pixels), MEAN, STD), torch.from_numpy(labels[chosen]).long()

    x_train, y_train = part("train", np.flatnonzero(~is_test), train)
    x_test, y_test = part("test", np.flatnonzero(is_test), test)
    return DataSet("cifar10-jpeg", x_train, y_train, x_test, y_test, classes=10, augment="shift-flip")
