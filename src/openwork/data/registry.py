"""Data sets by name, or from a function of the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openwork.core.annotations import switched
from openwork.data.cifar import cifar10, cifar100
from openwork.data.cifar10_jpeg import cifar10_jpeg
from openwork.data.criteo import criteo
from openwork.data.dataset import DataSet
from openwork.data.digits import digits
from openwork.data.factory import call_factory
from openwork.data.fashion_mnist import fashion_mnist
from openwork.data.folders import imagefolder, imagenet, tiny_imagenet
from openwork.data.movielens import movielens_100k
from openwork.data.photopatch import photopatch27
from openwork.data.places import Root
from openwork.data.pneumonia import pneumonia_mnist
from openwork.errors import DataError, did_you_mean

LOADERS: dict[str, Callable[..., DataSet]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "photopatch-27": photopatch27,
    "cifar10-jpeg": cifar10_jpeg,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "imagefolder": imagefolder,
    "tiny-imagenet": tiny_imagenet,
    "criteo": criteo,
    "movielens-100k": movielens_100k,
    "pneumonia-mnist": pneumonia_mnist,
}


def load_data(name_or_factory: str, root: Root = None, **options: Any) -> DataSet:
    """Load a data set by name, or call ``package.module:function``.

    A function is called with ``root`` (when given) and the options. It returns a ``DataSet``, the tensors or
    arrays ``(x_train, y_train, x_test, y_test)``, or a pair ``(train, test)`` of torch data sets or loaders.
    Data sets too large for memory come as a ``StreamedSet``, whose samples stay in their files.

    Raises:
        DataError: unknown name, unknown option, data not found, or a result of another kind.

    Examples:
        >>> data = load_data("digits")
        >>> data.input_shape, len(data.x_train), len(data.x_test)
        ((1, 8, 8), 1437, 360)
    """
    if ":" in name_or_factory:
        given = options if root is None else {"root": root, **options}
        result, _ = call_factory(name_or_factory, given, {}, DataError)
        return _as_data_set(name_or_factory, result)
    if name_or_factory not in LOADERS:
        raise DataError(f"unknown data {name_or_factory!r}; {did_you_mean(name_or_factory, LOADERS)}")
    loader = LOADERS[name_or_factory]
    known = set(inspect.signature(loader).parameters) - {"root"}
    for option in options:
        if option not in known:
            raise DataError(f"{name_or_factory} has no option {option!r}; {did_you_mean(option, known)}")
    return loader(root=root, **switched(name_or_factory, loader, options))


def _as_data_set(name: str, result: Any) -> DataSet:
    if isinstance(result, DataSet):
        return result
    if isinstance(result, tuple | list) and len(result) == 4:
        x_train, y_train, x_test, y_test = result
    elif isinstance(result, tuple | list) and len(result) == 2:
        (x_train, y_train), (x_test, y_test) = (_read(name, part) for part in result)
    else:
        size = f" of {len(result)}" if isinstance(result, tuple | list) else ""
        raise DataError(
            f"{name} must return a DataSet, (x_train, y_train, x_test, y_test) or a pair (train, test) "
            f"of data sets or loaders, got {type(result).__name__}{size}"
        )
    xs = [torch.as_tensor(x).to(torch.float32) for x in (x_train, x_test)]
    ys = [torch.as_tensor(y).to(torch.int64) for y in (y_train, y_test)]
    classes = 1 + max((int(y.max()) for y in ys if len(y)), default=0)
    return DataSet(name, xs[0], ys[0], xs[1], ys[1], classes)


def _read(name: str, part: Any) -> tuple[Tensor, Tensor]:
    """All samples of a torch data set, or all batches of a loader, as two tensors."""
    source: Iterable[Any] = DataLoader(part, batch_size=256) if isinstance(part, Dataset) else part
    try:
        batches = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in source]
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: train and test must give pairs (x, y) of tensors: {error}") from error
    if not batches:
        raise DataError(f"{name}: train and test must not be empty")
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
