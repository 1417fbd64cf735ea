"""Digits: 1,797 grey pictures of handwritten digits, 8x8, that come inside scikit-learn."""

from __future__ import annotations

import torch

from openwork.data.dataset import DataSet
from openwork.data.places import Root
from openwork.data.split import held_out
from openwork.errors import DataError

HELD_OUT = 360


def digits(root: Root = None, seed: int = 0) -> DataSet:
    """The digits with values in 0..1: 1,437 for training and 360 for testing, each class in its share.

    Args:
        root: not used; the data is inside the package.
        seed: chooses the split.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits needs scikit-learn; install it: pip install 'openwork[data]'") from None
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div_(16)[:, None]  # [N, 1, 8, 8]
    y = torch.from_numpy(bunch.target).long()
    test = held_out(y, HELD_OUT, seed)
    return DataSet("digits", x[~test], y[~test], x[test], y[test], classes=10)
