"""Digits: 1,797 grey pictures of handwritten digits, 8x8, that come inside scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwork.data.dataset import DataSet
from openwork.data.places import Root
from openwork.data.split import held_out
from openwork.errors import DataError

HELD_OUT = 360
INSIDE = "datasets/data/digits.csv.gz"
"""Where scikit-learn keeps the digits: reading them there takes a tenth of a second, importing it first takes two."""


def digits(root: Root = None, seed: int = 0) -> DataSet:
    """The digits with values in 0..1: 1,437 for training and 360 for testing, each class in its share.

    Args:
        root: not used; the data is inside the package.
        seed: chooses the split.

    Raises:
        DataError: scikit-learn is not installed.
    """
    table = _table()
    x = torch.from_numpy(table[:, :-1]).float().div_(16).view(-1, 1, 8, 8)
    y = torch.from_numpy(table[:, -1]).long()
    test = held_out(y, HELD_OUT, seed)
    return DataSet("digits", x[~test], y[~test], x[test], y[test], classes=10)


def _table() -> Any:
    """The grey values 0..16 of a picture and its class in every row ``[1797, 65]``."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("digits needs scikit-learn; install it: pip install 'openwork[data]'")
    file = Path(spec.origin).parent / INSIDE
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
