"""Data sets that are folders of pictures: one folder a class, or the layout of Tiny ImageNet."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from openwork.data.dataset import StreamedSet
from openwork.data.pictures import BROKEN, PictureSource
from openwork.data.places import ROOT_VARIABLE, Root, not_found, roots
from openwork.data.views import Crop
from openwork.errors import DataError

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")
HELD_OUT = ("val", "test")

Listing = dict[str, list[Path]]  # class -> its pictures, both sorted by name


def imagefolder(
    root: Root = None, size: int = 224, crop: Crop = "resized", broken: float = BROKEN, workers: int = 4
) -> StreamedSet:
    """Read ``train/CLASS/*`` for training and ``val/CLASS/*``, else ``test/CLASS/*``, for testing.

    Classes are numbered in the order of their names. CIFAR or any other set of pictures stored this way reads with
    ``size=32, crop="shift"``. Pictures are decoded when a batch needs them.

    Args:
        root: the folder above ``train``; ``OPENWORK_DATA`` is searched next.
        size: side in pixels. For testing the shorter side is scaled (to 256 for 224) and the middle cut out.
        crop: for training, ``"resized"`` scales a random part, ``"shift"`` moves the middle; both mirror half.
        broken: share of the pictures that may fail to decode before the run is refused.
        workers: decoding threads.

    Raises:
        DataError: no such folder, a class without pictures, other classes in the test folder, pillow is missing,
            or a refused option.
    """
    return _read("imagefolder", root, size, crop, broken, workers, "")


def imagenet(
    root: Root = None, size: int = 224, crop: Crop = "resized", broken: float = BROKEN, workers: int = 4
) -> StreamedSet:
    """ImageNet-1k as ``train/WNID/*.JPEG`` and ``val/WNID/*.JPEG``; arguments and errors as for ``imagefolder``.

    The validation pictures come in one folder; sort them into class folders first, as every training code wants.
    """
    hint = " Get ILSVRC2012 from image-net.org and sort the validation pictures into class folders."
    return _read("imagenet", root, size, crop, broken, workers, hint)


def tiny_imagenet(
    root: Root = None, size: int = 64, crop: Crop = "shift", broken: float = BROKEN, workers: int = 4
) -> StreamedSet:
    """Tiny ImageNet, 200 classes of 500 pictures with 64 pixels, in its own layout.

    That is ``wnids.txt``, ``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` and ``val/val_annotations.txt``;
    classes are numbered in the order of their names. Arguments as for ``imagefolder``.

    Raises:
        DataError: as for ``imagefolder``; also an annotation that names no class or no picture.
    """
    name = "tiny-imagenet"
    folders = [place / inner for place in roots(root) for inner in ("", "tiny-imagenet-200")]
    folder = next((place for place in folders if (place / "wnids.txt").is_file()), None)
    if folder is None:
        hint = f"Unpack tiny-imagenet-200.zip of cs231n.stanford.edu and pass its folder as root= or {ROOT_VARIABLE}."
        raise not_found(name, [place / "wnids.txt" for place in folders] or ["no folder was named"], hint)
    classes = sorted((folder / "wnids.txt").read_text().split())
    train: Listing = {wnid: _pictures(folder / "train" / wnid / "images") for wnid in classes}
    test: Listing = {wnid: [] for wnid in classes}
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise DataError(f"{name}: {annotations} is missing; unpack the archive again")
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        cells = line.split("\t")
        if len(cells) < 2 or cells[1] not in test:
            raise DataError(f"{annotations}: line {number} must name a picture and a class of wnids.txt, got {line!r}")
        test[cells[1]].append(folder / "val" / "images" / cells[0])
    return _streamed(name, folder, train, test, size, crop, broken, workers)


def _read(name: str, root: Root, size: int, crop: Crop, broken: float, workers: int, hint: str) -> StreamedSet:
    places = roots(root)
    folder = next((p for p in places if (p / "train").is_dir() and any((p / h).is_dir() for h in HELD_OUT)), None)
    if folder is None:
        missing = [f"{place}/train with {place}/val or test" for place in places] or ["no folder was named"]
        raise not_found(name, missing, f"Pass the folder above train and val as root= or {ROOT_VARIABLE}.{hint}")
    held = next(folder / h for h in HELD_OUT if (folder / h).is_dir())
    train, test = _classes(name, folder / "train"), _classes(name, held)
    if set(train) != set(test):
        odd = sorted(set(train) ^ set(test))
        where = "train" if odd[0] in train else held.name
        raise DataError(
            f"{name}: train and {held.name} must hold the same class folders, but {len(odd)} lie on one side only "
            f"({odd[0]!r} in {where}); complete or remove them"
        )
    return _streamed(name, folder, train, test, size, crop, broken, workers)


def _classes(name: str, folder: Path) -> Listing:
    with os.scandir(folder) as entries:
        inner = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not inner:
        raise DataError(f"{name}: {folder} must hold one folder a class, got none; sort the pictures into folders")
    return {wnid: _pictures(folder / wnid) for wnid in inner}


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(ENDINGS))
    return [folder / file for file in names]


def _streamed(
    name: str, folder: Path, train: Listing, test: Listing, size: int, crop: Crop, broken: float, workers: int
) -> StreamedSet:
    sources = []
    for side, listing in (("train", train), ("test", test)):
        empty = [wnid for wnid, files in listing.items() if not files]
        if empty:
            raise DataError(
                f"{name}: {len(empty)} of {len(listing)} classes have no picture for {side} in {folder}, the first is "
                f"{empty[0]!r} (files with {', '.join(ENDINGS)} count); add pictures or remove the class on both sides"
            )
        labels = torch.tensor([number for number, files in enumerate(listing.values()) for _ in files])
        files = [file for group in listing.values() for file in group]
        sources.append(PictureSource(name, files, labels, size, crop, broken, workers))
    return StreamedSet(name, sources[0], sources[1], len(train))
