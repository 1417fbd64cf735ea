"""How often guessing is right: a network that is no better has collapsed."""

from __future__ import annotations

import torch

from openwork.data import DataSet
from openwork.data.dataset import StreamedSet
from openwork.data.pictures import PictureSource
from openwork.errors import DataError


def chance_of(data: DataSet) -> float:
    """The accuracy of always answering the most frequent class of the test set.

    Of a streamed set the labels are counted in one pass, except that pictures are not decoded for it: those few that
    cannot be decoded, and that no accuracy counts, count here.

    Raises:
        DataError: a label of a streamed test set is that of no class.
    """
    source = data.test
    if isinstance(source, PictureSource):
        counts = source.labels.bincount()
    elif isinstance(data, StreamedSet):
        counts = torch.zeros(data.classes, dtype=torch.int64)
        for begin in range(0, len(source), source.chunk):
            labels = source.read(slice(begin, min(begin + source.chunk, len(source))))[1]
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < data.classes:
                raise DataError(
                    f"{data.name}: labels of the test side must lie in 0..{data.classes - 1}, got {int(labels.min())}.."
                    f"{int(labels.max())}; correct them or the number of classes"
                )
            counts += labels.bincount(minlength=data.classes)
    else:
        counts = data.y_test.flatten().bincount()
    return float(counts.max()) / int(counts.sum())
