"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28x28, ten classes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from openwork.data.dataset import DataSet
from openwork.data.idx import parse_idx, unpacked
from openwork.data.pixels import normalised
from openwork.data.places import Root, not_found, roots
from openwork.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
UPSTREAM = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
INSTALL = (
    "Install the Debian package dataset-fashion-mnist, point root= or OPENWORK_DATA at the four files, "
    "or fetch them from upstream once with download=True and root="
)
# Of the uncompressed bytes: packagers compress anew, so archives differ while the data does not.
MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
MEAN, STD = [0.2860], [0.3530]


def fashion_mnist(root: Root = None, download: bool = False) -> DataSet:
    """Read Fashion-MNIST from ``root``, ``OPENWORK_DATA`` or the folder of the Debian package.

    A folder may hold the four files themselves or a subfolder ``FashionMNIST/raw``, with or without ``.gz``.

    Args:
        root: a folder to search first.
        download: when found nowhere, fetch from upstream into ``FashionMNIST/raw`` under ``root`` (or
            ``OPENWORK_DATA``).

    Raises:
        DataError: found nowhere, damaged, or not the published bytes.
    """
    folder = _find(root)
    if folder is None and download:
        folder = _download(root)
    if folder is None:
        raise not_found("Fashion-MNIST", _places(root), INSTALL + ".")
    train, test = (_part(folder, part) for part in ("train", "t10k"))
    return DataSet("fashion-mnist", *train, *test, classes=10, augment="flip")


def _part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images, labels = (_read(_file(folder, f"{part}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
    return normalised(torch.from_numpy(images)[..., None], MEAN, STD), torch.from_numpy(labels).long()


def _places(root: Root) -> list[Path]:
    named = [place / inner for place in roots(root) for inner in ("", "FashionMNIST/raw", "fashion-mnist")]
    return [*named, DEBIAN]


def _file(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _find(root: Root) -> Path | None:
    whole = (place for place in _places(root) if all(_file(place, name).is_file() for name in MD5))
    return next(whole, None)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    content = unpacked(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != MD5[path.name.removesuffix(".gz")]:
        raise DataError(
            f"{path} is not the published file: md5 of its uncompressed bytes must be "
            f"{MD5[path.name.removesuffix('.gz')]}, got {found}; remove it and fetch it again"
        )
    return parse_idx(content, str(path))


def _download(root: Root) -> Path:
    named = roots(root)
    if not named:
        raise DataError("download=True needs a folder to write to; pass root= or set OPENWORK_DATA")
    folder = named[0] / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name in MD5:
        if not _file(folder, name).is_file():
            _fetch(f"{UPSTREAM}/{name}.gz", folder / f"{name}.gz")
    return folder


def _fetch(url: str, target: Path) -> None:
    partial = target.with_name(f"partial-{os.getpid()}-{target.name}")
    try:
        with urlopen(url, timeout=60) as answer:
            partial.write_bytes(answer.read())
    except (URLError, TimeoutError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{url} could not be fetched ({error}); {INSTALL}.") from error
    partial.replace(target)
